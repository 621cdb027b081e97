//! Every bound and every timeout, with its reason.
//!
//! Whatever a peer, a file or a user can make long, many or slow has its name here, and a test at
//! the limit and one past it.

use std::time::Duration;

/// The port the manual names.
pub const PORT_DEFAULT: u16 = 9999;
/// Ports tried in order when another program has 9999; the same range as the earlier
/// implementation.
pub const PORTS_FALLBACK: std::ops::RangeInclusive<u16> = 10_000..=10_020;

/// A daemon says that it serves within this time, or the start has failed.
pub const START_MAX: Duration = Duration::from_secs(10);
/// How long a command waits for a daemon that holds the lock and does not answer.
pub const OWNER_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a starter queues behind other starters; each of them needs milliseconds.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(30);
/// A healthy daemon answers `GET /v3/health` in well under a millisecond.
pub const HEALTH_MAX: Duration = Duration::from_secs(1);
/// One whole request of the command line to the daemon.
pub const CALL_MAX: Duration = Duration::from_secs(5);
/// The longest answer that the command line takes from a daemon.
pub const REPLY_BYTES_MAX: usize = 1 << 20;
/// `opta daemon stop` waits this long for the daemon to leave, unless `--timeout` says otherwise.
pub const STOP_WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// The same with `--force`: long enough to leave in peace, for a daemon that can.
pub const STOP_WAIT_FORCED: Duration = Duration::from_secs(2);
/// The longest `--timeout` and `--wait`: a day. More is a typing error.
pub const WAIT_SECONDS_MAX: u64 = 86_400;
/// Work in flight gets this long after SIGTERM.
pub const GRACE_MAX: Duration = Duration::from_secs(3);

/// After that, answers and the last words of streams.
pub const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// One call of `systemctl` or `launchctl`: they answer in milliseconds, and wait for a daemon that
/// needs [`START_MAX`] at most to come and [`GRACE_MAX`] to go.
pub const MANAGER_MAX: Duration = Duration::from_secs(15);
/// What a manager says beyond this is not read: `launchctl print` fills some ten kilobytes.
pub const MANAGER_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// launchd takes a moment to forget a job, says so with a plain "5: Input/output error", and offers
/// nothing to wait on: it is asked again this often,
pub const LAUNCHD_TRIES: u32 = 8;
/// after a pause that begins with this and doubles each time. In all 6.35 s, within
/// [`MANAGER_MAX`].
pub const LAUNCHD_PAUSE: Duration = Duration::from_millis(50);

/// [`CRASHES_MAX`] crashes within this window end automatic restarts: the fault is not a passing
/// one.
pub const CRASHES_WINDOW: Duration = Duration::from_secs(60);
/// See [`CRASHES_WINDOW`].
pub const CRASHES_MAX: usize = 3;
/// The daemon looks after its `state.json` at most this often, and only when something happens.
pub const STATE_CHECK_EVERY: Duration = Duration::from_secs(60);

/// `state.json` is a few hundred bytes; anything longer is not ours.
pub const STATE_BYTES_MAX: u64 = 16 * 1024;
/// `daemon.pid` holds one decimal number.
pub const PID_BYTES_MAX: u64 = 32;
/// `config.json` is written by hand.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// A report of a starting daemon is one line.
pub const REPORT_BYTES_MAX: usize = 16 * 1024;

/// Nesting of JSON from outside; a reader on a small stack must survive it.
pub const JSON_DEPTH_MAX: usize = 32;

/// Open connections. A thread, a descriptor and some 25 KiB each.
pub const CONNECTIONS_MAX: usize = 256;
/// Threads that wait for a next connection, for the commands that come one after the other.
pub const THREADS_SPARE_MAX: usize = 4;
/// Descriptors that the daemon asks the system for: each connection may take four while it waits
/// for events (its socket, the two ends of its bell, the journal), and each active turn one.
pub const DESCRIPTORS: u64 = 2_048;
/// Stack of a connection's thread. Only the touched pages cost memory.
pub const CONNECTION_STACK_BYTES: usize = 1 << 20;
/// The request line and the headers together.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of one request.
pub const HEADERS_MAX: usize = 64;
/// The body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// A connection may be silent this long between two requests.
pub const IDLE_MAX: Duration = Duration::from_secs(15);
/// From the first byte of a head to its last.
pub const HEAD_MAX: Duration = Duration::from_secs(5);
/// From the end of the head to the last byte of the body.
pub const BODY_MAX: Duration = Duration::from_secs(10);
/// From the first byte of an answer to its last.
pub const WRITE_MAX: Duration = Duration::from_secs(10);
/// After an error answer: what the peer still sends is read away this long, so that the answer is
/// not lost to a reset.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// See [`DRAIN_MAX`]; whoever sends more does not read the answer anyway.
pub const DRAIN_BYTES_MAX: usize = 1 << 20;
/// The pause after `accept` failed for want of a resource.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The pause after the wait for a signal failed.
pub const SIGNAL_PAUSE: Duration = Duration::from_millis(100);
/// The same trouble is logged at most this often.
pub const LOG_REPEAT_EVERY: Duration = Duration::from_secs(60);

/// The log is rotated when it would grow past this (`log.maxBytes` in the config).
pub const LOG_BYTES_DEFAULT: u64 = 10 << 20;
/// The smallest `log.maxBytes`: below it, rotation would cost more than logging.
pub const LOG_BYTES_MIN: u64 = 4 * 1024;
/// Old logs kept (`log.files` in the config).
pub const LOG_FILES_DEFAULT: u32 = 3;
/// The most old logs that `log.files` may ask for.
pub const LOG_FILES_MAX: u32 = 99;
/// One field of a log line; a longer one is cut and marked.
pub const LOG_FIELD_BYTES_MAX: usize = 4 * 1024;
/// Lines that `opta daemon logs` shows unless `--lines` says otherwise.
pub const LOG_LINES_DEFAULT: usize = 50;
/// A line of the log longer than this is shown cut: reading stays in constant memory.
pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;

/// The name of a session or a turn.
pub const ID_BYTES_MAX: usize = 64;
/// An entry of the list of sessions: far longer than any that opta writes.
pub const INDEX_LINE_BYTES_MAX: usize = 4 * 1024;
/// A title made of a session's first input.
pub const TITLE_CHARS_MAX: usize = 60;
/// Turns of a session whose ids are remembered, so that a turn that is sent again is not run again.
pub const TURN_IDS_MAX: usize = 10_000;
/// The body of a submitted turn.
pub const TURN_BODY_BYTES_MAX: usize = 4 << 20;
/// A journal's index has an entry for about as many bytes: finding an event reads no more than
/// that.
pub const INDEX_EVERY_BYTES: u64 = 64 * 1024;
/// Turns of one session that wait.
pub const QUEUE_MAX: usize = 1_000;
/// Turns that run at the same time, over all sessions.
pub const ACTIVE_TURNS_MAX: usize = 16;
/// A session that nobody has used for so long leaves memory.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// Events in one answer, unless `limit` asks for fewer.
pub const EVENTS_MAX: usize = 1_000;
/// Bytes of events in one answer; at least one event is always given.
pub const EVENTS_BYTES_MAX: usize = 1 << 20;
/// The longest wait that a poll for events may ask for.
pub const POLL_MAX: Duration = Duration::from_secs(60);
/// A call of a tool, where it is shown on one line.
pub const CALL_CHARS_MAX: usize = 160;
/// Candidates that are named when the beginning of an id fits several sessions.
pub const CANDIDATES_MAX: usize = 5;
/// A record that is being written is whole after this time; one that is not by then is torn.
pub const TORN_WAIT_MAX: Duration = Duration::from_millis(200);
/// Sessions in one page of a list.
pub const SESSIONS_PAGE_MAX: usize = 250;
/// Sessions in a page unless `limit` says otherwise.
pub const SESSIONS_PAGE_DEFAULT: usize = 50;
/// Connections that are event streams.
pub const STREAMS_MAX: usize = 64;
/// A stream with nothing to say shows this often that it is alive.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// A stream that has shown no sign of life for so long, three heartbeats, is given up.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(45);
/// An event as a stream carries it: a turn's content, each byte of it escaped.
pub const EVENT_BYTES_MAX: usize = 32 << 20;
/// How often a turn is followed anew, one time after the other, without anything new of it.
pub const FOLLOW_TRIES_MAX: u32 = 3;
/// Nothing has arrived for so long: time to say that something is being waited for.
pub const PROGRESS_AFTER: Duration = Duration::from_millis(400);
/// After a signal: how long a command waits for the end of its turn, and for somebody to read what
/// it has still to say. A command that is killed for good gets a multiple of it from most.
pub const PARTING_MAX: Duration = Duration::from_secs(2);
/// A task that comes on standard input, or a line of a chat; its request, with the escapes, has
/// room for it.
pub const TASK_BYTES_MAX: u64 = 3 << 20;
/// The least room on the disk that `opta doctor` is content with.
pub const DISK_FREE_MIN: u64 = 64 << 20;
/// How long `opta doctor` waits for a model server to say what it offers.
pub const DOCTOR_MODEL_MAX: Duration = Duration::from_secs(2);
/// Sessions that `opta doctor` reads through, the newest ones.
pub const DOCTOR_SESSIONS_MAX: usize = 20;
/// A summary is put beside a journal at most this often.
pub const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// The summary beside a journal.
pub const SUMMARY_BYTES_MAX: u64 = 64 * 1024;
/// The name that a client gives itself or its writer.
pub const NAME_BYTES_MAX: usize = 256;
/// The title that a client gives a session.
pub const TITLE_BYTES_MAX: usize = 1024;
/// A path: what Linux takes.
pub const PATH_BYTES_MAX: usize = 4096;

/// One turn, from its first model call to its last: a turn that needs longer has lost its way.
pub const TURN_MAX: Duration = Duration::from_secs(60 * 60);
/// Tool calls of one turn, unless `safety.maxToolCalls` says otherwise.
pub const TOOL_CALLS_DEFAULT: u64 = 30;
/// The most that `safety.maxToolCalls` may ask for.
pub const TOOL_CALLS_MAX: u64 = 1_000;
/// The same call with the same arguments so often in a row ends a turn: the model goes in a circle.
pub const SAME_CALLS_MAX: u64 = 3;
/// Tool calls that only read and run side by side.
pub const PARALLEL_TOOLS_MAX: usize = 8;
/// The tokens of one answer: a file of about 16 KiB, and an end to a model that repeats itself.
pub const ANSWER_TOKENS_MAX: u32 = 4_096;
/// What a model is sent of a conversation besides its task; older parts are left out to get there.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;
/// A tool's result; of a longer one the beginning and the end are kept.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;
/// What is kept of a result that there is no room for in a model's context: some 4,000 tokens,
pub const RESULT_CLIPPED_BYTES: usize = 16 * 1024;
/// and if that is too much, some 1,000.
pub const RESULT_CLIPPED_BYTES_MIN: usize = 4 * 1024;
/// Lines of a change that are shown above the question whether it may be made; more on request.
pub const CHANGE_LINES_MAX: usize = 20;
/// How long a permission is waited for; then the answer is no.
pub const PERMISSION_MAX: Duration = Duration::from_secs(5 * 60);
/// How long a question stands while nobody follows its session: whoever has only lost a connection
/// is back by then.
pub const ALONE_MAX: Duration = Duration::from_secs(10);
/// A command that a tool runs, unless the call says otherwise.
pub const COMMAND_DEFAULT: Duration = Duration::from_secs(30);
/// The longest that a call may ask for.
pub const COMMAND_MAX: Duration = Duration::from_secs(10 * 60);
/// Between the request that a command ends and the end of patience.
pub const COMMAND_GRACE: Duration = Duration::from_secs(2);
/// So much of a file is looked through for the lines that a call asks for.
pub const READ_BYTES_MAX: u64 = 256 << 20;
/// A file that can be edited or written: it is held in memory.
pub const EDIT_BYTES_MAX: u64 = 8 << 20;
/// A larger file is not searched.
pub const SEARCH_BYTES_MAX: u64 = 16 << 20;
/// Lines that a search finds.
pub const MATCHES_MAX: usize = 50;
/// Characters of a line that a search shows.
pub const MATCH_CHARS_MAX: usize = 300;
/// Entries of one directory that are looked at.
pub const DIRECTORY_ENTRIES_MAX: usize = 20_000;
/// Entries that one call walks through.
pub const WALK_ENTRIES_MAX: usize = 500_000;
/// Directories in one another; each costs an open descriptor.
pub const WALK_DEPTH_MAX: usize = 48;
/// A `.gitignore` is written by hand.
pub const IGNORE_BYTES_MAX: u64 = 256 * 1024;
/// A pattern to search for.
pub const PATTERN_BYTES_MAX: usize = 1_000;
/// See [`PATTERN_BYTES_MAX`]: with its repetitions written out.
pub const PATTERN_STEPS_MAX: usize = 5_000;
/// Steps of matching after which it is looked whether anybody still waits: some milliseconds.
pub const PATTERN_STEPS_UNASKED_MAX: u64 = 1 << 18;
/// Steps that one line may take, about a second: the longest line that is searched has sixteen for
/// each character, which is enough for patterns that people write.
pub const PATTERN_LINE_STEPS_MAX: u64 = 1 << 28;
/// The port of a model server that the settings name without one: that of LM Studio and LMX.
pub const MODEL_PORT_DEFAULT: u16 = 1234;
/// Addresses of one host name that are tried one after the other.
pub const ADDRESSES_MAX: usize = 4;
/// Looking up a host name: what a resolver needs for one server that does not answer.
pub const RESOLVE_MAX: Duration = Duration::from_secs(6);
/// Connecting to one address: the first packet may be lost, and is sent again after a second.
pub const MODEL_CONNECT_MAX: Duration = Duration::from_secs(2);
/// A server that reads nothing for so long will not read the rest of a request.
pub const MODEL_SEND_MAX: Duration = Duration::from_secs(30);
/// The first word of an answer: a busy server queues the request, loads a model and reads the
/// prompt first.
pub const MODEL_FIRST_MAX: Duration = Duration::from_secs(600);
/// Silence within an answer. Comments count as words: servers send them to say that they are alive.
pub const MODEL_IDLE_MAX: Duration = Duration::from_secs(120);
/// What may follow the end of an answer, its usage, comes at once or not at all.
pub const MODEL_TAIL_MAX: Duration = Duration::from_secs(1);
/// A busy server is asked again so often.
pub const MODEL_RETRIES_MAX: u32 = 2;
/// The pause before that, if the server names none.
pub const MODEL_RETRY_WAIT: Duration = Duration::from_secs(1);
/// The longest pause that a server may ask for, and all pauses together for one that loads its
/// model; nobody waits longer at a terminal.
pub const MODEL_RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// One line of a stream, or an answer that is no stream. A tool call may carry a whole file.
pub const MODEL_LINE_BYTES_MAX: usize = 8 << 20;
/// What an answer says: text, thinking and tool calls together.
pub const MODEL_ANSWER_BYTES_MAX: usize = 8 << 20;
/// A stream with all that is around its words, some 300 bytes a token; comments count.
pub const MODEL_STREAM_BYTES_MAX: usize = 256 << 20;
/// Tool calls in one answer.
pub const MODEL_CALLS_MAX: usize = 64;
/// The body of a refusal, and the time for it.
pub const MODEL_REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// See [`MODEL_REFUSAL_BYTES_MAX`].
pub const MODEL_REFUSAL_MAX: Duration = Duration::from_secs(5);
/// What is quoted of a server's words in an error.
pub const MODEL_QUOTE_CHARS_MAX: usize = 400;
/// What is quoted of a word that a model or its server has made up where a name belongs.
pub const MODEL_WORD_CHARS_MAX: usize = 64;
/// What is quoted of an answer that cannot be understood.
pub const MODEL_OPENING_CHARS_MAX: usize = 200;
/// The list of a server's models; some offer hundreds.
pub const MODEL_LIST_BYTES_MAX: usize = 4 << 20;
/// The time for that list, when a turn needs it.
pub const MODEL_LIST_MAX: Duration = Duration::from_secs(10);
/// How long a server's first model is remembered.
pub const MODEL_LIST_KEPT: Duration = Duration::from_secs(30);
/// How long it is remembered what was too long for a model: it may be loaded with more room.
pub const CONTEXT_KEPT: Duration = Duration::from_secs(10 * 60);
/// Servers of which something is remembered, and models.
pub const MODEL_SERVERS_KEPT: usize = 32;
/// A server on this machine tells its models within this time, or it is none.
pub const MODEL_PROBE_MAX: Duration = Duration::from_secs(1);
