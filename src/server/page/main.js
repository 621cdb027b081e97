// The page: which view is shown, and how the connection is.

import { hasToken, onToken, takeToken } from "./api.js";
import * as daemon from "./daemon.js";
import { byId, say, setText } from "./dom.js";
import * as session from "./session.js";
import * as sessions from "./sessions.js";
import { follow } from "./stream.js";

const TROUBLE = {
  silent: "The daemon does not answer. Waiting …",
  lost: "The connection to the daemon is lost. Trying again …",
  refused: "The daemon was restarted, so this page may no longer talk to it. To go on: opta web",
};

/** The fragment of the view that is shown. */
let shown = "";

/** Shows the view that the address names. */
function route() {
  takeToken(shown);
  shown = location.hash;
  const [, name, id] = /^#\/(session|daemon)(?:\/([\w-]{1,64}))?$/.exec(location.hash) ?? [];
  const view = name === "daemon" ? "daemon" : id ? "session" : "list";
  document.body.dataset.view = view;
  for (const pane of ["session", "daemon", "welcome"]) {
    byId(pane).hidden = pane !== (view === "list" ? "welcome" : view);
  }
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = (view === "daemon") === (link.hash === "#/daemon");
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  sessions.choose(id);
  if (view === "session") session.open(id);
  else session.close();
  daemon.show(view === "daemon");
  if (view !== "session") document.title = view === "daemon" ? "Daemon – opta" : "opta";
}

async function onState(state, before) {
  document.body.dataset.connection = state;
  byId("trouble").hidden = state === "open" || !hasToken();
  setText(byId("trouble-text"), TROUBLE[state] ?? "");
  byId("entry").hidden = hasToken();
  byId("app").hidden = !hasToken();
  if (state !== "open" || before === "silent") return;
  try {
    await Promise.all([sessions.load(), session.catchUp(), daemon.load()]);
  } catch (error) {
    say(error.message);
  }
}

function onEvent(event) {
  // The next event, or the next connection, tries again.
  sessions.receive(event).catch(() => {});
  session.receive(event);
  daemon.receive(event);
}

takeToken();
sessions.start();
session.start();
daemon.start();
addEventListener("hashchange", route);
onToken(() => (byId("app").hidden = !(byId("entry").hidden = true)));
follow(onEvent, onState);
byId("entry").hidden = hasToken();
byId("app").hidden = !hasToken();
if (hasToken()) route();
onToken(route);
