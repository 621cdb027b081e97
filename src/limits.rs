//! Every limit and every timeout, with its reason.
//!
//! Whatever a peer, a file or a user can make long, numerous or slow has a limit with a name here,
//! and is tested at the limit and just beyond it.

use std::time::Duration;

/// The port that the manual names.
pub const PORT_DEFAULT: u16 = 9999;
/// Ports to try in order if another program has 9999.
pub const PORTS_FALLBACK: std::ops::RangeInclusive<u16> = 10_000..=10_020;

/// A daemon that does not serve within this time has failed to start.
pub const START_MAX: Duration = Duration::from_secs(10);
/// The pause between two looks at the lock, whose release changes no directory.
pub const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a command waits for others that change the settings. Each takes milliseconds.
pub const SETTINGS_LOCK_MAX: Duration = Duration::from_secs(5);
/// A new file of settings that is older than this was left by a command that was killed.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// The pause between two looks at a process where the kernel has no notification of its end.
pub const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a command waits for a daemon that holds the lock and does not answer.
pub const UNRESPONSIVE_MAX: Duration = Duration::from_secs(5);
/// How long a starter waits for the start lock. Each starter holds it for milliseconds.
pub const START_LOCK_MAX: Duration = Duration::from_secs(30);
/// A working daemon answers `GET /v3/health` in much less than a millisecond.
pub const HEALTH_MAX: Duration = Duration::from_secs(1);
/// One request of the command line to the daemon, with its response.
pub const CALL_MAX: Duration = Duration::from_secs(5);
/// The longest response that the command line accepts from a daemon.
pub const REPLY_BYTES_MAX: usize = 1 << 20;
/// How long `opta daemon stop` waits for the daemon to exit, unless `--timeout` is given.
pub const STOP_WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// The same with `--force`: long enough for a daemon that can exit cleanly.
pub const STOP_WAIT_FORCED: Duration = Duration::from_secs(2);
/// The longest `--timeout` and `--wait`: a day. More is a typing error.
pub const WAIT_SECONDS_MAX: u64 = 86_400;
/// How long requests in flight may continue after SIGTERM.
pub const GRACE_MAX: Duration = Duration::from_secs(3);
/// After that: for the last replies and the last events of streams.
pub const LAST_REPLIES_MAX: Duration = Duration::from_secs(1);

/// How long a command that opens a browser may take to fail. Some run as long as the browser.
pub const BROWSER_MAX: Duration = Duration::from_secs(2);
/// One call of `systemctl` or `launchctl`. They answer in milliseconds, or wait for a daemon that
/// starts within [`START_MAX`] or stops within [`GRACE_MAX`].
pub const MANAGER_MAX: Duration = Duration::from_secs(15);
/// Output of a manager that is read. `launchctl print` writes tens of kilobytes.
pub const MANAGER_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How often a command to launchd is tried. It fails with "5: Input/output error" while launchd
/// unloads a job, and there is nothing to wait on.
pub const LAUNCHD_TRIES: u32 = 8;
/// The pause before the second try; it doubles each time. All pauses take 6.35 s, which is within
/// [`MANAGER_MAX`].
pub const LAUNCHD_PAUSE: Duration = Duration::from_millis(50);

/// [`CRASHES_MAX`] crashes within this time end automatic restarts, because the fault is permanent.
pub const CRASHES_WINDOW: Duration = Duration::from_secs(60);
/// See [`CRASHES_WINDOW`].
pub const CRASHES_MAX: usize = 3;
/// The daemon checks its `state.json` at most this often, and only when it is active.
pub const STATE_CHECK_EVERY: Duration = Duration::from_secs(60);

/// `state.json` has a few hundred bytes; a longer file was not written by opta.
pub const STATE_BYTES_MAX: u64 = 16 * 1024;
/// `daemon.pid` contains one decimal number.
pub const PID_BYTES_MAX: u64 = 32;
/// `config.json` is written by hand.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The report of a starting daemon is one line.
pub const REPORT_BYTES_MAX: usize = 16 * 1024;

/// Nesting of JSON from outside. The recursion must fit on a small stack.
pub const JSON_DEPTH_MAX: usize = 32;

/// Open connections: twice as many as there can be streams. Each takes a descriptor, and one that
/// has shown the token a thread and at most 24 KiB.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Connections that wait to be accepted. More are tried again by their system after a second.
pub const BACKLOG: i32 = 4_096;
/// Connections that are accepted before those that are open are looked at again.
pub const ACCEPT_BATCH: usize = 64;
/// Threads that wait for a connection, for commands that follow one another.
pub const SPARE_THREADS_MAX: usize = 4;
/// Descriptors that the daemon asks the system for. A connection that waits for events takes four
/// (its socket, both ends of its waker, the journal), an active turn one.
pub const DESCRIPTORS_WANTED: u64 = 4_096;
/// The threads that send new events to followers. More would only compete with the clients.
pub const DISPATCHER_THREADS: usize = 2;
/// The followers that one of them serves alone: to wake another takes as long as to serve a few.
pub const TARGETS_OF_ONE_THREAD: usize = 8;
/// The longest pause of such a thread after more followers. It is otherwise as long as serving them
/// took, so that the clients have half of the time to read.
pub const DISPATCHER_REST_MAX: Duration = Duration::from_millis(10);
/// The stack of a connection's thread. Only touched pages take memory.
pub const CONNECTION_STACK_BYTES: usize = 256 * 1024;
/// Address space that is kept free for requests in progress when memory runs out: four of the
/// longest bodies. New ones are refused until it is free again.
pub const MEMORY_RESERVE_BYTES: usize = 16 << 20;
/// The request line and the headers together, and the same of a response.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// The body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// The time between two requests on a connection.
pub const IDLE_MAX: Duration = Duration::from_secs(15);
/// The time from the first byte of a head to its last.
pub const HEAD_MAX: Duration = Duration::from_secs(5);
/// The time from the end of the head to the last byte of the body.
pub const BODY_MAX: Duration = Duration::from_secs(10);
/// The time from the first byte of a reply to its last.
pub const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long the server discards what a client sends after a refusal: a reset would lose the reply.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// See [`DRAIN_MAX`]. A client that sends more does not read the reply.
pub const DRAIN_BYTES_MAX: usize = 1 << 20;
/// The pause after `accept` failed for lack of a resource.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The pause after the wait for a signal failed.
pub const SIGNAL_PAUSE: Duration = Duration::from_millis(100);
/// The same error is logged at most this often.
pub const LOG_REPEAT_EVERY: Duration = Duration::from_secs(60);

/// The log is rotated before it exceeds this size (`log.maxBytes` in the config).
pub const LOG_BYTES_DEFAULT: u64 = 10 << 20;
/// The smallest `log.maxBytes`: with less, rotation would cost more than logging.
pub const LOG_BYTES_MIN: u64 = 4 * 1024;
/// Old logs that are kept (`log.files` in the config).
pub const LOG_FILES_DEFAULT: u32 = 3;
/// The largest `log.files`.
pub const LOG_FILES_MAX: u32 = 99;
/// A field of a log line; a longer one is truncated and marked.
pub const LOG_FIELD_BYTES_MAX: usize = 4 * 1024;
/// Lines that `opta daemon logs` prints, unless `--lines` is given.
pub const LOG_LINES_DEFAULT: usize = 50;
/// A longer line of the log is printed truncated, so that reading takes constant memory.
pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;

/// How often a follower looks at the log where it cannot watch it.
pub const LOG_POLL_EVERY: Duration = Duration::from_secs(1);

/// The id of a session or a turn.
pub const ID_BYTES_MAX: usize = 64;
/// An entry of the list of sessions: much longer than any that opta writes.
pub const INDEX_LINE_BYTES_MAX: usize = 4 * 1024;
/// A title made from the first input of a session.
pub const TITLE_CHARS_MAX: usize = 60;
/// Turn ids that a session remembers, so that a turn that is sent again is not run again.
pub const TURN_IDS_MAX: usize = 10_000;
/// The body of a submitted turn.
pub const TURN_BODY_BYTES_MAX: usize = 4 << 20;
/// The index of a journal has one entry per this many bytes: finding an event reads no more.
pub const INDEX_EVERY_BYTES: u64 = 64 * 1024;
/// The number of an event. Clients in JavaScript cannot tell larger whole numbers apart.
pub const SEQ_MAX: u64 = 1 << 53;
/// Turns that wait in one session.
pub const QUEUED_TURNS_MAX: usize = 1_000;
/// How often the thread of a turn is started, if the system refuses it for lack of a resource.
pub const WORKER_TRIES_MAX: u32 = 4;
/// The pause before each further try: others give threads and memory back in the meantime.
pub const WORKER_PAUSE: Duration = Duration::from_millis(50);
/// Turns that run at the same time, over all sessions.
pub const ACTIVE_TURNS_MAX: usize = 16;
/// A session that was not used for this time is unloaded from memory.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// Events in one reply, unless `limit` asks for fewer.
pub const EVENTS_MAX: usize = 1_000;
/// Bytes of events in one reply, which has at least one event.
pub const EVENTS_BYTES_MAX: usize = 1 << 20;
/// The longest wait that a poll for events can ask for.
pub const POLL_MAX: Duration = Duration::from_secs(60);
/// How long `opta do` waits for the first byte on standard input before it says so, or goes on
/// without a socket: programs start others with one that they never write to.
pub const INPUT_EXPECTED_WITHIN: Duration = Duration::from_secs(3);
/// How often output waits for the end of another process's line on the same pipe.
pub const PIPE_LOCK_EVERY: Duration = Duration::from_millis(20);
/// The name of a model in a list of sessions.
pub const MODEL_CHARS_MAX: usize = 24;
/// The end of a directory in a list of sessions.
pub const DIRECTORY_CHARS_MAX: usize = 30;
/// A tool call on one line.
pub const CALL_CHARS_MAX: usize = 160;
/// The last lines of a command's output that are shown. All of it is on request.
pub const OUTPUT_LINES_SHOWN: usize = 3;
/// Sessions that are listed when an id prefix is ambiguous.
pub const CANDIDATES_MAX: usize = 5;
/// A record that is still incomplete after this time is torn and not being written.
pub const TORN_WAIT_MAX: Duration = Duration::from_millis(200);
/// Lines of the log in one reply. One has at most [`LOG_LINE_BYTES_MAX`], few have a thousandth.
pub const LOG_LINES_OPERATION_MAX: usize = 1000;
/// Lines of the log in a reply, unless the request says how many.
pub const LOG_LINES_OPERATION_DEFAULT: usize = 100;
/// A search of all sessions for a client. Known clients give up after 8 seconds.
pub const SESSIONS_SEARCH_MAX: Duration = Duration::from_secs(5);
/// Records that are searched between two checks whether the result is still awaited.
pub const SEARCH_RECORDS: u64 = 64;
/// Sessions on one page of the list.
pub const SESSIONS_PAGE_MAX: usize = 250;
/// Sessions on a page, unless `limit` is given.
pub const SESSIONS_PAGE_DEFAULT: usize = 50;
/// Connections that are event streams. A client opens one for each of the sessions on its page.
pub const STREAMS_MAX: usize = 512;
/// A stream of the daemon's health sends it this often.
pub const HEALTH_EVERY: Duration = Duration::from_secs(25);
/// A stream without events sends a heartbeat this often.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// A stream without a byte for this time, three heartbeats, is dead.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(45);
/// A payload that clients also get as `data`. That of most events is much shorter; a longer one is
/// the result of a tool, or an input.
pub const DATA_BYTES_MAX: usize = 16 * 1024;
/// A message of a WebSocket's client, in one frame or many.
pub const WEBSOCKET_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The time from the first byte of such a message to its last.
pub const WEBSOCKET_MESSAGE_MAX: Duration = Duration::from_secs(10);
/// A frame that the daemon sends; a longer message is sent in fragments. While a slow client takes
/// one, it can be sent nothing else.
pub const WEBSOCKET_FRAME_BYTES_MAX: usize = 32 * 1024;
/// The newest events of a session, as text, which its followers share: they are woken at the same
/// time and would each read the same records.
pub const RECENT_EVENTS_MAX: usize = 4;
/// A longer one is read by each of them.
pub const RECENT_EVENT_BYTES_MAX: usize = 4 * 1024;
/// What is held for a WebSocket's client that does not take it. More waits in the journal.
pub const WEBSOCKET_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// The memory for it that an idle WebSocket keeps: enough for most events. The allocator has one
/// lock for all threads, for which the followers of a session would wait at each event.
pub const WEBSOCKET_OUTPUT_KEPT_BYTES: usize = 2 * 1024;
/// The same in the system: a slow client must not take its memory either. Some is left for a last
/// message.
pub const WEBSOCKET_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// A WebSocket without a byte for this time is sent a ping.
pub const WEBSOCKET_PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client of a WebSocket may take nothing of what it is sent.
pub const WEBSOCKET_STALL_MAX: Duration = Duration::from_secs(10);
/// The end of a turn is sent to a WebSocket no sooner than this after its beginning. Clients that
/// submit over HTTP note the beginning when they have the reply, and the end may overtake it.
pub const TURN_END_HELD: Duration = Duration::from_millis(150);
/// An event in a stream: the content of a turn with every byte escaped.
pub const EVENT_BYTES_MAX: usize = 32 << 20;
/// How often a command reconnects to a stream in succession without receiving an event.
pub const FOLLOW_TRIES_MAX: u32 = 3;
/// After this time without output, a command shows that it is waiting.
pub const PROGRESS_AFTER: Duration = Duration::from_millis(400);
/// The same within an answer, where a model may pause.
pub const SILENCE_SHOWN_AFTER: Duration = Duration::from_secs(3);
/// How often what a turn is waiting for is shown again: a spinner that moves.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long a command waits after a signal for the end of its turn, and for its output to be read.
/// Most supervisors kill a command later than that.
pub const AFTER_SIGNAL_MAX: Duration = Duration::from_secs(2);
/// A task from standard input, or a line of a chat. Its request fits with all escapes.
pub const TASK_BYTES_MAX: u64 = 3 << 20;
/// The history of what was typed at the prompt of a chat. A chat reads all of it.
pub const INPUT_HISTORY_BYTES_MAX: u64 = 1 << 20;
/// Messages of that history that can be recalled.
pub const INPUT_HISTORY_MAX: usize = 1_000;
/// A longer message is not kept in it: no one looks for it there.
pub const INPUT_HISTORY_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// What is typed while a turn runs and stays in the kernel. Linux keeps 4,095 bytes; with more, it
/// stops reading the terminal, and Ctrl-C has no effect.
pub const TYPED_BYTES_MAX: usize = 3 * 1024;
/// How often a chat looks at the number of these bytes while a turn runs.
pub const TYPED_EVERY: Duration = Duration::from_millis(200);
/// After this time without input, a paste has ended.
pub const PASTE_PAUSE_MAX: Duration = Duration::from_millis(300);
/// How long a paste takes: 3 MiB through a slow connection.
pub const PASTE_MAX: Duration = Duration::from_secs(30);
/// Paths that Tab shows.
pub const COMPLETIONS_MAX: usize = 200;
/// How long a chat waits for the list of models of its server before its first prompt.
pub const CHAT_MODEL_MAX: Duration = Duration::from_secs(2);
/// `opta doctor` warns about less free space on the disk.
pub const DISK_FREE_MIN: u64 = 64 << 20;
/// The lines of the help: a terminal window of the usual size.
pub const HELP_COLUMNS_MAX: usize = 80;
/// The narrowest column of text that `opta doctor` makes: a few words.
pub const WRAPPED_COLUMNS_MIN: usize = 24;
/// How long `opta doctor` waits for the list of models of a server.
pub const DOCTOR_MODEL_MAX: Duration = Duration::from_secs(2);
/// Sessions that `opta doctor` reads, the newest ones.
pub const DOCTOR_SESSIONS_MAX: usize = 20;
/// A summary is written beside a journal at most this often.
pub const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// The summaries of listed sessions in the memory of the daemon: twice what a list may have.
pub const SUMMARIES_CACHED_MAX: usize = 512;
/// The summary beside a journal.
pub const SUMMARY_BYTES_MAX: u64 = 64 * 1024;
/// The name of a client or a writer.
pub const NAME_BYTES_MAX: usize = 256;
/// The title that a client gives to a session.
pub const TITLE_BYTES_MAX: usize = 1024;
/// The label of a workspace, which is the name of a directory: `NAME_MAX`.
pub const LABEL_BYTES_MAX: usize = 255;
/// A path: `PATH_MAX` of Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// One turn, from its first model call to its last. A turn that takes longer makes no progress.
pub const TURN_MAX: Duration = Duration::from_secs(60 * 60);
/// What one turn writes to the journal of its session: 300,000 tokens, each in an event of its own.
/// A server that sends its answer letter by letter would fill a disk otherwise.
pub const TURN_JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Instructions from `AGENTS.md` files in a system prompt: about 8,000 tokens.
pub const INSTRUCTIONS_BYTES_MAX: usize = 32 * 1024;
/// Tool calls of one turn, unless `safety.maxToolCalls` is set.
pub const TOOL_CALLS_DEFAULT: u64 = 100;
/// The largest `safety.maxToolCalls`.
pub const TOOL_CALLS_MAX: u64 = 1_000;
/// This many identical calls in succession, with identical results, are a loop.
pub const SAME_CALLS_MAX: usize = 3;
/// Text that comes again this soon is repeated text.
pub const SAME_TEXT_BYTES: usize = 200;
/// This many repetitions of the same text are a loop, and this many bytes of them.
pub const SAME_TEXTS_MAX: usize = 4;
/// See [`SAME_TEXTS_MAX`]. A line across a page is shorter.
pub const SAME_TEXT_BYTES_ALL: usize = 2_000;
/// The text in which repetitions are searched: four long paragraphs.
pub const SAME_TEXT_WINDOW: usize = 16 * 1024;
/// Tool calls that run in parallel. They only read.
pub const PARALLEL_TOOLS_MAX: usize = 8;
/// The largest `model.maxTokens`: more than any model can write.
pub const ANSWER_TOKENS_MAX: u64 = 10_000_000;
/// The part of a conversation that a model is sent besides its task. Older parts are omitted.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;
/// The part of a journal in which a turn looks for that. A token of four bytes takes about 200 in a
/// journal, so that less of it would often hold less of the conversation than the limit above.
pub const HISTORY_JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Records of text that take less of a journal are not worth repeating their text as a whole.
pub const SAID_RECORDS_BYTES_MIN: u64 = 16 * 1024;
/// The result of a tool. Of a longer one, the beginning and the end are kept.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;
/// The same of a result that does not fit into the context of a model: about 4,000 tokens.
pub const RESULT_CLIPPED_BYTES: usize = 16 * 1024;
/// The same if that is still too much: about 1,000 tokens.
pub const RESULT_CLIPPED_BYTES_MIN: usize = 4 * 1024;
/// Lines of a change that are shown with the question whether it is allowed. More are on request.
pub const CHANGE_LINES_MAX: usize = 20;
/// The characters of a question, and of a line of a change, that are shown at first. More are on
/// request.
pub const QUESTION_CHARS_MAX: usize = 600;
/// The same on a small terminal.
pub const QUESTION_CHARS_MIN: usize = 80;
/// Blanks in succession that are shown as their number.
pub const BLANKS_SHOWN_MAX: usize = 8;
/// The comparisons of lines for a difference: a rewritten file of 1,000 lines.
pub const DIFF_CELLS_MAX: usize = 1 << 20;
/// How long a question waits for an answer; then the answer is no.
pub const PERMISSION_MAX: Duration = Duration::from_secs(5 * 60);
/// How long a question waits while no client follows its session. A client that lost its connection
/// reconnects sooner.
pub const UNFOLLOWED_MAX: Duration = Duration::from_secs(10);
/// The time for a command of a tool, unless the call gives one.
pub const COMMAND_DEFAULT: Duration = Duration::from_secs(30);
/// The longest time that a call can give.
pub const COMMAND_MAX: Duration = Duration::from_secs(10 * 60);
/// The time between SIGTERM and SIGKILL for a command.
pub const COMMAND_GRACE: Duration = Duration::from_secs(2);
/// Bytes of a file that are searched for the lines that a call asks for.
pub const READ_BYTES_MAX: u64 = 256 << 20;
/// A file that can be edited or written, because it is held in memory.
pub const EDIT_BYTES_MAX: u64 = 8 << 20;
/// Files of a session of which is remembered what its model has seen: more than it can edit.
pub const FILES_SEEN_MAX: usize = 1_000;
/// Sessions of which that is remembered.
pub const SESSIONS_SEEN_MAX: usize = 100;
/// Larger files are not searched.
pub const SEARCH_BYTES_MAX: u64 = 16 << 20;
/// Lines that a search returns.
pub const MATCHES_MAX: usize = 50;
/// Characters of a line that a search returns.
pub const MATCH_CHARS_MAX: usize = 300;
/// Entries of one directory that are read.
pub const DIRECTORY_ENTRIES_MAX: usize = 20_000;
/// Entries that one call visits.
pub const WALK_ENTRIES_MAX: usize = 500_000;
/// Nested directories; each takes an open descriptor.
pub const WALK_DEPTH_MAX: usize = 48;
/// A `.gitignore` is written by hand.
pub const IGNORE_BYTES_MAX: usize = 256 * 1024;
/// The rules of what git ignores that hold in one directory, in bytes of their files.
pub const IGNORE_BYTES_ALL_MAX: usize = 1 << 20;
/// A pattern or glob to search for.
pub const PATTERN_BYTES_MAX: usize = 1_000;
/// A compiled pattern, and the states that each thread keeps while it matches.
pub const REGEX_BYTES_MAX: usize = 1 << 20;
/// The globs that one with alternatives in braces stands for.
pub const GLOB_ALTERNATIVES_MAX: usize = 100;
/// The threads of one search. Each holds a file in memory.
pub const SEARCH_THREADS_MAX: usize = 8;
/// Larger files are in memory one at a time.
pub const SEARCH_LARGE_BYTES: u64 = 2 << 20;
/// The bytes that are searched between two checks whether the turn is cancelled.
pub const SEARCH_PIECE_BYTES: usize = 256 * 1024;
/// The files of a search that a thread is given at once.
pub const SEARCH_JOB_FILES: usize = 16;
/// The steps in which the memory for a file grows. Most files fit into one.
pub const SEARCH_BUFFER_BYTES: usize = 64 * 1024;
/// A question to a program of the system for a tool's own use.
pub const QUESTION_MAX: Duration = Duration::from_secs(2);
/// The port of a model server that is configured without one: that of LM Studio and LMX.
pub const MODEL_PORT_DEFAULT: u16 = 1234;
/// Addresses of one host name that are tried in order.
pub const ADDRESSES_MAX: usize = 4;
/// Resolving a host name: what a resolver needs to skip one server that does not answer.
pub const RESOLVE_MAX: Duration = Duration::from_secs(6);
/// What getent(1) prints about one host name, or lsof(8) about one port.
pub const PROGRAM_BYTES_MAX: usize = 64 * 1024;
/// Connecting to one address. If the first packet is lost, TCP sends it again after a second.
pub const MODEL_CONNECT_MAX: Duration = Duration::from_secs(2);
/// Connecting to an `https://` server: resolving its name and that of a proxy, and several round
/// trips, each of which may have to be repeated.
pub const CURL_CONNECT_MAX: Duration = Duration::from_secs(15);
/// The time from the end of curl's output to its own end, which follows immediately.
pub const CURL_END_MAX: Duration = Duration::from_secs(2);
/// `curl --version` needs no network.
pub const CURL_VERSION_MAX: Duration = Duration::from_secs(2);
/// How long a server may read nothing of a request.
pub const MODEL_SEND_MAX: Duration = Duration::from_secs(30);
/// The time to the first token. A busy server queues the request, loads a model and reads the
/// prompt first.
pub const MODEL_FIRST_MAX: Duration = Duration::from_secs(600);
/// Silence within an answer. Some servers are silent until a tool call is complete, so it is as
/// long as the time to the first token. Comments end it: servers send them as a heartbeat.
pub const MODEL_IDLE_MAX: Duration = Duration::from_secs(600);
/// The largest `connection.firstWordSeconds` and `connection.silenceSeconds`: a whole turn.
pub const MODEL_SECONDS_MAX: u64 = 60 * 60;
/// The usage, which may follow the end of an answer, arrives immediately or never.
pub const MODEL_TAIL_MAX: Duration = Duration::from_secs(1);
/// How often a request is repeated to a server that fails: a second time it may be the server's
/// restart, more often it is the request.
pub const MODEL_FAILURES_MAX: u32 = 6;
/// The pause before the first retry, unless the server gives one; it doubles each time.
pub const MODEL_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
pub const MODEL_RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// All pauses of a request together. A server that has to load a large model takes minutes; a
/// person at a terminal waits no longer.
pub const MODEL_RETRYING_MAX: Duration = Duration::from_secs(5 * 60);
/// The shortest time between two events of text in a turn. A screen shows 60 to 240 pictures a
/// second.
pub const TOKEN_EVENT_EVERY: Duration = Duration::from_millis(4);
/// A line of a stream, or an answer that is not a stream. A tool call may contain a whole file.
pub const MODEL_LINE_BYTES_MAX: usize = 8 << 20;
/// The content of an answer: text, thinking and tool calls together.
pub const MODEL_ANSWER_BYTES_MAX: usize = 8 << 20;
/// A stream with its framing, about 300 bytes per token; comments count.
pub const MODEL_STREAM_BYTES_MAX: usize = 256 << 20;
/// Tool calls in one answer.
pub const MODEL_CALLS_MAX: usize = 64;
/// The body of an error response.
pub const MODEL_ERROR_BYTES_MAX: usize = 64 * 1024;
/// The time for the body of an error response.
pub const MODEL_ERROR_MAX: Duration = Duration::from_secs(5);
/// The part of a server's message that an error quotes.
pub const MODEL_QUOTE_CHARS_MAX: usize = 400;
/// The part of an unknown name, from a model or its server, that an error quotes.
pub const MODEL_WORD_CHARS_MAX: usize = 64;
/// The part of a response that is not understood that an error quotes.
pub const MODEL_OPENING_CHARS_MAX: usize = 200;
/// The list of models of a server. Some offer hundreds.
pub const MODEL_LIST_BYTES_MAX: usize = 4 << 20;
/// The time for that list when a turn needs it.
pub const MODEL_LIST_MAX: Duration = Duration::from_secs(10);
/// The time until a server begins to answer each of two questions about the size of its context;
/// twice that for everything.
pub const MODEL_CONTEXT_MAX: Duration = Duration::from_secs(2);
/// A shorter request fits into every context.
pub const SHORT_REQUEST_BYTES: usize = 8 * 1024;
/// The bytes of a token of text that is hard to encode, such as code.
pub const TOKEN_BYTES: u64 = 3;
/// The part of a context that is kept for the answer, at most.
pub const CONTEXT_ANSWER_TOKENS_MAX: u64 = 4_096;
/// How long the first model of a server is remembered.
pub const MODEL_LIST_KEPT: Duration = Duration::from_secs(30);
/// How long it is remembered that a request was too long for a model, or which fields its server
/// rejects. The model may be loaded again with a larger context, the server started with tools.
pub const SERVER_FACTS_KEPT: Duration = Duration::from_secs(10 * 60);
/// Servers and models that are remembered.
pub const MODEL_SERVERS_KEPT: usize = 32;
/// The time to find out whose server answers, where another program has to be asked.
pub const OWNER_MAX: Duration = Duration::from_secs(2);
/// A model server on this machine lists its models within this time.
pub const MODEL_PROBE_MAX: Duration = Duration::from_secs(1);
