//! What the list of models of a server, and its properties, say. Pure.

use std::iter;

use nanoserde::DeJson;

use crate::json::{self, Lenient};

/// Parts of the names of models that do not chat.
const OTHER_MODELS: [&str; 7] = ["embed", "rerank", "whisper", "bge-", "minilm", "e5-", "tts"];

/// Returns the names in the body of `GET /v1/models`; `None` if it is no such body, as from a
/// server of another kind that answers every request with 200.
pub fn model_names(body: &[u8]) -> Option<Vec<String>> {
    #[derive(DeJson)]
    struct List {
        object: Option<String>,
        data: Option<Vec<Model>>,
    }
    #[derive(DeJson)]
    struct Model {
        id: String,
    }
    let list: List = json::parse(body).ok()?;
    match list.data {
        Some(models) => Some(models.into_iter().map(|model| model.id).collect()),
        // An Ollama that has none.
        None => list.object.is_some_and(|object| object == "list").then(Vec::new),
    }
}

/// Returns the first model that chats, judging by its name.
pub fn first_chat_model(names: &[String]) -> Option<&String> {
    names.iter().find(|name| {
        let name = name.to_ascii_lowercase();
        !OTHER_MODELS.iter().any(|part| name.contains(part))
    })
}

/// A model in the list of a server.
pub struct ListedModel {
    pub name: String,
    /// The size of its context in tokens, if the server tells it.
    pub context: Option<u64>,
}

/// Returns the models in the body of `GET /v1/models`; `None` as [`model_names`].
pub fn listed_models(body: &[u8]) -> Option<Vec<ListedModel>> {
    let names = model_names(body)?.into_iter();
    let contexts = contexts(body).unwrap_or_default().into_iter().map(|(_, context)| context);
    let contexts = contexts.chain(iter::repeat(None));
    Some(names.zip(contexts).map(|(name, context)| ListedModel { name, context }).collect())
}

/// Returns the size of a model's context in tokens, from the body of `GET /v1/models`. Without a
/// name, the server's only model.
pub fn listed_context(body: &[u8], name: Option<&str>) -> Option<u64> {
    let models = contexts(body)?;
    let is_only = models.len() == 1;
    let is_it = |id: &str| is_only || name.is_some_and(|name| name == id);
    models.into_iter().find(|(id, _)| is_it(id))?.1
}

/// Returns the id of each model in the body of `GET /v1/models`, and the size of its context.
fn contexts(body: &[u8]) -> Option<Vec<(String, Option<u64>)>> {
    #[derive(DeJson)]
    struct List {
        data: Option<Vec<Model>>,
    }
    #[derive(DeJson)]
    struct Model {
        id: String,
        // vLLM, then LM Studio, then OpenRouter and others, then llama.cpp.
        max_model_len: Option<Lenient>,
        loaded_context_length: Option<Lenient>,
        context_length: Option<Lenient>,
        max_context_length: Option<Lenient>,
        meta: Option<Meta>,
    }
    #[derive(DeJson)]
    struct Meta {
        n_ctx: Option<Lenient>,
    }
    let models = json::parse::<List>(body).ok()?.data?.into_iter();
    let sizes = models.map(|model| {
        let sizes = [
            model.max_model_len,
            model.loaded_context_length,
            model.context_length,
            model.max_context_length,
            model.meta.and_then(|meta| meta.n_ctx),
        ];
        (model.id, sizes.into_iter().flatten().find_map(tokens))
    });
    Some(sizes.collect())
}

/// Returns the size of the context in tokens, from the body of llama.cpp's `GET /props`.
pub fn context_of_props(body: &[u8]) -> Option<u64> {
    #[derive(DeJson)]
    struct Properties {
        default_generation_settings: Option<Settings>,
        n_ctx: Option<Lenient>,
    }
    #[derive(DeJson)]
    struct Settings {
        n_ctx: Option<Lenient>,
    }
    let properties: Properties = json::parse(body).ok()?;
    let settings = properties.default_generation_settings.and_then(|settings| settings.n_ctx);
    settings.or(properties.n_ctx).and_then(tokens)
}

/// Returns a size that a model may have.
fn tokens(size: Lenient) -> Option<u64> {
    size.into_text().parse().ok().filter(|tokens| *tokens > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_the_context_is_found_where_each_server_tells_it() {
        let listed = |body: &str| listed_context(body.as_bytes(), Some("m"));
        for (fields, size) in [
            (r#","max_model_len":8192"#, Some(8192)),
            (r#","max_context_length":131072,"loaded_context_length":4096"#, Some(4096)),
            (r#","context_length":"16384""#, Some(16384)),
            (r#","meta":{"n_ctx":2048,"n_ctx_train":8192}"#, Some(2048)),
            (r#","meta":null,"max_model_len":null"#, None),
            (r#","context_length":0"#, None),
        ] {
            assert_eq!(listed(&format!(r#"{{"data":[{{"id":"m"{fields}}}]}}"#)), size, "{fields}");
        }
        let two = r#"{"data":[{"id":"n","max_model_len":1},{"id":"m","max_model_len":2}]}"#;
        assert_eq!(listed(two), Some(2));
        assert_eq!(listed_context(two.as_bytes(), None), None);
        assert_eq!(listed("<html>"), None);
        let props = br#"{"default_generation_settings":{"n_ctx":512},"total_slots":1}"#;
        assert_eq!(context_of_props(props), Some(512));
        assert_eq!(context_of_props(b"{}"), None);
    }

    #[test]
    fn only_a_list_of_models_has_names() {
        let names = |body: &str| model_names(body.as_bytes());
        let two =
            names(r#"{"object":"list","models":[1],"data":[{"id":"a","meta":null},{"id":"b"}]}"#);
        assert_eq!(two, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(names(r#"{"object":"list","data":null}"#), Some(Vec::new()));
        assert_eq!(names(r#"{"data":[]}"#), Some(Vec::new()));
        for body in [
            "",
            "<html>",
            "{}",
            "[]",
            r#"{"error":"Unexpected endpoint"}"#,
            r#"{"data":[{}]}"#,
            r#"{"data":["a"]}"#,
            r#"{"data":{"id":"a"}}"#,
        ] {
            assert_eq!(names(body), None, "{body}");
        }
    }

    #[test]
    fn models_that_do_not_chat_are_skipped() {
        let names = ["nomic-embed-text", "BGE-m3", "Whisper-1", "qwen", "llama"].map(String::from);
        assert_eq!(first_chat_model(&names).unwrap(), "qwen");
        assert_eq!(first_chat_model(names.get(..3).unwrap()), None);
    }
}
