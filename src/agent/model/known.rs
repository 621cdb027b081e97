//! What has been learned about servers: which fields they refuse, and their first model. In memory,
//! for a few servers at a time.

use std::sync::Mutex;
use std::time::Instant;

use crate::{limits, mutex};

use super::wire::Extra;

struct Server {
    url: String,
    left_out: Vec<Extra>,
    model: Option<(String, Instant)>,
}

/// The latest ones last.
static SERVERS: Mutex<Vec<Server>> = Mutex::new(Vec::new());

/// The fields that the server at `url` is better not sent.
pub fn left_out(url: &str) -> Vec<Extra> {
    let servers = mutex::lock(&SERVERS);
    let server = servers.iter().find(|server| server.url == url);
    server.map(|server| server.left_out.clone()).unwrap_or_default()
}

/// Remembers the fields without which the server has answered.
pub fn leave_out(url: &str, extras: &[Extra]) {
    if !extras.is_empty() {
        change(url, |server| server.left_out = extras.to_vec());
    }
}

/// The first model of the server, unless it was learned too long ago.
pub fn model(url: &str) -> Option<String> {
    let servers = mutex::lock(&SERVERS);
    let (model, learned) = servers.iter().find(|server| server.url == url)?.model.as_ref()?;
    (learned.elapsed() < limits::MODEL_LIST_KEPT).then(|| model.clone())
}

/// Remembers the first model of the server.
pub fn keep_model(url: &str, model: &str) {
    change(url, |server| server.model = Some((model.to_owned(), Instant::now())));
}

fn change(url: &str, change: impl FnOnce(&mut Server)) {
    change_among(&mut mutex::lock(&SERVERS), url, change);
}

fn change_among(servers: &mut Vec<Server>, url: &str, change: impl FnOnce(&mut Server)) {
    let position = servers.iter().position(|server| server.url == url);
    let mut server = match position {
        Some(at) => servers.remove(at),
        None => Server { url: url.to_owned(), left_out: Vec::new(), model: None },
    };
    change(&mut server);
    if servers.len() >= limits::MODEL_SERVERS_KEPT {
        servers.remove(0);
    }
    servers.push(server);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_remembered_until_others_take_its_place() {
        let url = |number: usize| format!("http://known.test:{number}/v1");
        leave_out(&url(0), &[Extra::Temperature]);
        keep_model(&url(0), "m");
        assert_eq!(left_out(&url(0)), [Extra::Temperature]);
        assert_eq!(model(&url(0)).unwrap(), "m");
        assert!(left_out(&url(1)).is_empty() && model(&url(1)).is_none());
        // Among servers of its own: other tests have theirs remembered.
        let mut servers = Vec::new();
        for number in 0..=limits::MODEL_SERVERS_KEPT {
            change_among(&mut servers, &url(number), |server| server.left_out.clear());
        }
        assert_eq!(servers.len(), limits::MODEL_SERVERS_KEPT);
        assert_eq!(servers.first().unwrap().url, url(1));
    }
}
