//! How much models can be told, as far as turns have found out: what was too long in one turn need
//! not be refused again in the next. In memory, for a few models at a time, and not for ever: a
//! model may be loaded again with more room, and bytes are not what a context is measured in.

use std::sync::Mutex;
use std::time::Instant;

use crate::protocol::Endpoint;
use crate::{limits, mutex};

/// What has been learned, the latest last.
#[derive(Default)]
pub struct Contexts(Mutex<Vec<Context>>);

struct Context {
    url: String,
    model: Option<String>,
    /// So many bytes of messages were refused, and fewer were not.
    too_many: usize,
    learned: Instant,
}

impl Contexts {
    /// The bytes of messages that are too many for the model at `endpoint`.
    pub fn too_many(&self, endpoint: &Endpoint, now: Instant) -> Option<usize> {
        let contexts = mutex::lock(&self.0);
        let known = contexts.iter().find(|context| context.is_of(endpoint));
        let fresh = |known: &&Context| now - known.learned < limits::CONTEXT_KEPT;
        known.filter(fresh).map(|known| known.too_many)
    }

    /// `told` bytes were answered, after `refused` if there was a refusal.
    pub fn learn(&self, endpoint: &Endpoint, told: usize, refused: Option<usize>, now: Instant) {
        let mut contexts = mutex::lock(&self.0);
        contexts.retain(|known| {
            let wrong = refused.is_some() || told >= known.too_many;
            !(wrong && known.is_of(endpoint))
        });
        let Some(too_many) = refused else { return };
        if contexts.len() >= limits::MODEL_SERVERS_KEPT {
            contexts.remove(0);
        }
        let (url, model) = (endpoint.url.clone(), endpoint.model.clone());
        contexts.push(Context { url, model, too_many, learned: now });
    }
}

impl Context {
    fn is_of(&self, endpoint: &Endpoint) -> bool {
        self.url == endpoint.url && self.model == endpoint.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn endpoint(model: usize) -> Endpoint {
        let (url, source) = ("http://h:1".to_owned(), "a test".to_owned());
        Endpoint { url, source, key: None, model: Some(model.to_string()), tool_choice: None }
    }

    #[test]
    fn what_was_too_long_is_known_for_a_while_and_for_this_model() {
        let (contexts, now) = (Contexts::default(), Instant::now());
        assert_eq!(contexts.too_many(&endpoint(0), now), None);
        contexts.learn(&endpoint(0), 50, Some(100), now);
        contexts.learn(&endpoint(0), 99, None, now);
        assert_eq!(contexts.too_many(&endpoint(0), now), Some(100));
        assert_eq!(contexts.too_many(&endpoint(1), now), None);
        let end = now + limits::CONTEXT_KEPT;
        let before = end.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(contexts.too_many(&endpoint(0), before), Some(100));
        assert_eq!(contexts.too_many(&endpoint(0), end), None);
        // The latest counts, and what was answered was not too long.
        contexts.learn(&endpoint(0), 70, Some(80), now);
        assert_eq!(contexts.too_many(&endpoint(0), now), Some(80));
        contexts.learn(&endpoint(0), 80, None, now);
        assert_eq!(contexts.too_many(&endpoint(0), now), None);
    }

    #[test]
    fn models_are_known_until_others_take_their_place() {
        let (contexts, now) = (Contexts::default(), Instant::now());
        let learn = |model: usize| contexts.learn(&endpoint(model), 1, Some(2), now);
        (0..limits::MODEL_SERVERS_KEPT).for_each(learn);
        assert_eq!(contexts.too_many(&endpoint(0), now), Some(2));
        learn(limits::MODEL_SERVERS_KEPT);
        assert_eq!(contexts.too_many(&endpoint(0), now), None);
        assert_eq!(contexts.too_many(&endpoint(1), now), Some(2));
    }
}
