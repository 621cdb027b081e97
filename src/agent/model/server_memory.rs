//! Facts about model servers. They are kept in memory, for the most recently used servers and
//! models, and not forever: a model may be loaded again with a larger context.

use std::sync::Mutex;
use std::time::Instant;

use crate::limits;
use crate::mutex::lock;
use crate::protocol::Endpoint;

/// The facts about the model at each endpoint, the latest last.
#[derive(Default)]
pub struct ServerMemory(Mutex<Vec<Entry>>);

#[derive(Clone, Default)]
struct Entry {
    url: String,
    model: Option<String>,
    /// The fields that the server rejects, and when that was learned.
    rejected: Option<(Vec<&'static str>, Instant)>,
    /// The server's first model, and when it was learned.
    first_model: Option<(String, Instant)>,
    /// The bytes of messages that are too many for the context, and when that was learned. Bytes
    /// are not the unit of a context, so the number may become wrong as well.
    too_long: Option<(usize, Instant)>,
    /// The size of the context in tokens, if the server tells it, and when it was asked.
    context: Option<(Option<u64>, Instant)>,
}

impl ServerMemory {
    /// Returns the fields that the server rejects, if that was learned recently.
    pub fn rejected(&self, endpoint: &Endpoint, now: Instant) -> Vec<&'static str> {
        let known = self.known(endpoint).rejected;
        let recent = known.filter(|(_, learned)| now - *learned < limits::SERVER_FACTS_KEPT);
        recent.map_or(Vec::new(), |(fields, _)| fields)
    }

    /// Remembers the fields without which the server has answered.
    pub fn learn_rejected(&self, endpoint: &Endpoint, fields: Vec<&'static str>, now: Instant) {
        self.update(endpoint, |entry| entry.rejected = Some((fields, now)));
    }

    /// Returns the server's first model, if it was learned recently.
    pub fn first_model(&self, endpoint: &Endpoint) -> Option<String> {
        let (model, learned) = self.known(endpoint).first_model?;
        (learned.elapsed() < limits::MODEL_LIST_KEPT).then_some(model)
    }

    /// Remembers the server's first model.
    pub fn learn_first_model(&self, endpoint: &Endpoint, model: &str) {
        let learned = (model.to_owned(), Instant::now());
        self.update(endpoint, |entry| entry.first_model = Some(learned));
    }

    /// Returns the bytes of messages that are too many for the model, if that was learned recently.
    pub fn too_long(&self, endpoint: &Endpoint, now: Instant) -> Option<usize> {
        let (bytes, learned) = self.known(endpoint).too_long?;
        (now - learned < limits::SERVER_FACTS_KEPT).then_some(bytes)
    }

    /// Learns from messages of `sent` bytes that were answered, after a request with `refused`
    /// bytes was refused as too long.
    pub fn learn_context(
        &self,
        endpoint: &Endpoint,
        sent: usize,
        refused: Option<usize>,
        now: Instant,
    ) {
        let known = self.known(endpoint).too_long;
        if refused.is_some() || known.is_some_and(|(too_long, _)| sent >= too_long) {
            self.update(endpoint, |entry| entry.too_long = refused.map(|bytes| (bytes, now)));
        }
    }

    /// Returns the size of the model's context in tokens, or `None` in it if the server does not
    /// tell it; `None` if that was not asked recently.
    pub fn context(&self, endpoint: &Endpoint, now: Instant) -> Option<Option<u64>> {
        let (tokens, asked) = self.known(endpoint).context?;
        (now - asked < limits::SERVER_FACTS_KEPT).then_some(tokens)
    }

    /// Remembers what the server tells of the size of the model's context.
    pub fn learn_context_size(&self, endpoint: &Endpoint, tokens: Option<u64>, now: Instant) {
        self.update(endpoint, |entry| entry.context = Some((tokens, now)));
    }

    fn known(&self, endpoint: &Endpoint) -> Entry {
        lock(&self.0).iter().find(|entry| entry.is_for(endpoint)).cloned().unwrap_or_default()
    }

    fn update(&self, endpoint: &Endpoint, change: impl FnOnce(&mut Entry)) {
        let mut entries = lock(&self.0);
        let known = entries.iter().position(|entry| entry.is_for(endpoint));
        let mut entry = known.map(|at| entries.remove(at)).unwrap_or_default();
        entry.url.clone_from(&endpoint.url);
        entry.model.clone_from(&endpoint.model);
        change(&mut entry);
        if entries.len() >= limits::MODEL_SERVERS_KEPT {
            entries.remove(0);
        }
        entries.push(entry);
    }
}

impl Entry {
    fn is_for(&self, endpoint: &Endpoint) -> bool {
        self.url == endpoint.url && self.model == endpoint.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn endpoint(model: usize) -> Endpoint {
        let (url, source) = ("http://h:1".to_owned(), "a test".to_owned());
        Endpoint { url, source, model: Some(model.to_string()), ..Endpoint::default() }
    }

    #[test]
    fn the_size_that_was_too_long_is_known_for_a_while_and_for_this_model_only() {
        let (memory, now) = (ServerMemory::default(), Instant::now());
        assert_eq!(memory.too_long(&endpoint(0), now), None);
        memory.learn_context(&endpoint(0), 50, Some(100), now);
        memory.learn_context(&endpoint(0), 99, None, now);
        assert_eq!(memory.too_long(&endpoint(0), now), Some(100));
        assert_eq!(memory.too_long(&endpoint(1), now), None);
        let end = now + limits::SERVER_FACTS_KEPT;
        let before = end.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(memory.too_long(&endpoint(0), before), Some(100));
        assert_eq!(memory.too_long(&endpoint(0), end), None);
        // The latest counts, and a size that was answered was not too long.
        memory.learn_context(&endpoint(0), 70, Some(80), now);
        assert_eq!(memory.too_long(&endpoint(0), now), Some(80));
        memory.learn_context(&endpoint(0), 80, None, now);
        assert_eq!(memory.too_long(&endpoint(0), now), None);
    }

    #[test]
    fn all_that_is_known_of_a_model_is_kept_for_a_while_or_until_others_displace_it() {
        let (memory, now) = (ServerMemory::default(), Instant::now());
        memory.learn_rejected(&endpoint(0), vec!["temperature"], now);
        memory.learn_first_model(&endpoint(0), "m");
        let known = |model: usize| {
            (memory.rejected(&endpoint(model), now).len(), memory.first_model(&endpoint(model)))
        };
        assert_eq!(known(0), (1, Some("m".to_owned())));
        for model in 1..limits::MODEL_SERVERS_KEPT {
            memory.learn_first_model(&endpoint(model), "n");
        }
        assert_eq!(known(0), (1, Some("m".to_owned())));
        memory.learn_first_model(&endpoint(limits::MODEL_SERVERS_KEPT), "n");
        assert_eq!(known(0), (0, None));
        assert_eq!(known(1), (0, Some("n".to_owned())));
        memory.learn_rejected(&endpoint(1), vec!["tools"], now);
        assert!(memory.rejected(&endpoint(1), now + limits::SERVER_FACTS_KEPT).is_empty());
    }
}
