//! What the list of models of a server, and its properties, say. Pure.

use nanoserde::DeJson;

use crate::json::{self, Lenient};

/// Parts of the names of models that do not chat.
const OTHER_MODELS: [&str; 7] = ["embed", "rerank", "whisper", "bge-", "minilm", "e5-", "tts"];

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

/// Returns the models in the body of `GET /v1/models`; `None` if it is no such body, as from a
/// server of another kind that answers every request with 200.
pub fn listed_models(body: &[u8]) -> Option<Vec<ListedModel>> {
    #[derive(DeJson)]
    struct List {
        object: Option<String>,
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
        meta: Option<Lenient>,
    }
    #[derive(DeJson)]
    struct Meta {
        n_ctx: Option<Lenient>,
    }
    let list: List = json::parse(body).ok()?;
    // An Ollama that has none.
    let is_empty = || list.object.is_some_and(|object| object == "list");
    let Some(models) = list.data else { return is_empty().then(Vec::new) };
    let models = models.into_iter().map(|model| {
        let meta = model.meta.map(Lenient::into_text);
        let meta = meta.and_then(|meta| json::parse::<Meta>(meta.as_bytes()).ok());
        let sizes = [
            model.max_model_len,
            model.loaded_context_length,
            model.context_length,
            model.max_context_length,
            meta.and_then(|meta| meta.n_ctx),
        ];
        let context = sizes.into_iter().flatten().find_map(tokens);
        ListedModel { name: model.id, context }
    });
    Some(models.collect())
}

/// Returns the names of listed models.
pub fn names(models: Vec<ListedModel>) -> Vec<String> {
    models.into_iter().map(|model| model.name).collect()
}

/// Returns the names in the body of `GET /v1/models`; `None` as [`listed_models`].
pub fn model_names(body: &[u8]) -> Option<Vec<String>> {
    listed_models(body).map(names)
}

/// Returns the size of a model's context in tokens, from the body of `GET /v1/models`. Without a
/// name, the server's only model.
pub fn listed_context(body: &[u8], name: Option<&str>) -> Option<u64> {
    let models = listed_models(body)?;
    let is_only = models.len() == 1;
    let is_it = |model: &&ListedModel| is_only || name.is_some_and(|name| name == model.name);
    models.iter().find(is_it)?.context
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
        // Whatever else a server says about them.
        let odd = r#"{"data":[{"id":"a","meta":"x","max_model_len":[],"context_length":{}}]}"#;
        assert_eq!(names(odd), Some(vec!["a".to_owned()]));
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
