//! The local page: plain files that are part of the program. They hold nothing of the user, so they
//! are served without the token; the page asks the API for everything else.

use std::sync::OnceLock;

use super::reply::Reply;
use super::websocket;

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
pub struct PageFile {
    name: &'static str,
    bytes: &'static [u8],
    /// Its digest, once it was asked for.
    tag: OnceLock<String>,
}

/// Lists files of the folder `page`.
macro_rules! files {
    ($($name:literal,)+) => {
        [$(PageFile {
            name: $name,
            bytes: include_bytes!(concat!("page/", $name)),
            tag: OnceLock::new(),
        },)+]
    };
}

/// All files; the first is the page itself.
static FILES: [PageFile; 17] = files!(
    "index.html",
    "style.css",
    "main.js",
    "api.js",
    "stream.js",
    "dom.js",
    "sessions.js",
    "session.js",
    "conversation.js",
    "cards.js",
    "composer.js",
    "scroll.js",
    "markdown.js",
    "diff.js",
    "permission.js",
    "daemon.js",
    "graph.js",
);

/// Nothing is loaded from elsewhere, and nothing that is data becomes a script or a style.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Returns the file at a path: `/`, or `/page/` and a name.
pub fn find(path: &str) -> Option<&'static PageFile> {
    match path.strip_prefix("/page/") {
        Some(name) => FILES.iter().skip(1).find(|file| file.name == name),
        None if path == "/" => FILES.first(),
        None => None,
    }
}

impl PageFile {
    /// Returns the reply with this file, or that the client has it: `known` is its
    /// `If-None-Match`.
    pub fn reply(&self, known: Option<&str>) -> Reply {
        Reply::bytes(self.media_type(), self.bytes)
            .with_tag(self.tag.get_or_init(|| websocket::digest(self.bytes)), known)
            // Kept, and asked for again each time: another version may serve the next one.
            .with("Cache-Control", "no-cache")
            .with("Content-Security-Policy", POLICY)
            .with("Referrer-Policy", "no-referrer")
            .with("Cross-Origin-Opener-Policy", "same-origin")
    }

    fn media_type(&self) -> &'static str {
        match self.name.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "text/javascript; charset=utf-8",
        }
    }
}
