//! A small HTTP/1.1 client: one connection, one request, one response. RFC 9112.
//!
//! It asks no proxy, follows no redirect and keeps no connection. Every wait has a deadline. What
//! the responses mean is up to the caller.

mod call;
mod connection;
mod request;
mod response;

pub use call::{EventStream, Response, StreamResponse, call, is_listening, open_stream};
pub use connection::{ClientConnection, addresses};
pub use request::Request;
pub use response::ResponseHead;
