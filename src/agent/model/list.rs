//! The models that a server offers, and which of them is meant when none is named. Pure.

use nanoserde::DeJson;

use crate::json;

/// Parts of names of models that do not chat.
const NO_CHAT: [&str; 7] = ["embed", "rerank", "whisper", "bge-", "minilm", "e5-", "tts"];

#[derive(DeJson)]
struct List {
    object: Option<String>,
    data: Option<Vec<Model>>,
}

#[derive(DeJson)]
struct Model {
    id: String,
}

/// The names in the body of `GET /v1/models`; `None` if it is no such body. What answers every
/// request with 200 is told from a model server by this.
pub fn names(body: &[u8]) -> Option<Vec<String>> {
    let list: List = json::parse(body).ok()?;
    match list.data {
        Some(models) => Some(models.into_iter().map(|model| model.id).collect()),
        // An Ollama that has none.
        None => list.object.is_some_and(|object| object == "list").then(Vec::new),
    }
}

/// The first that looks as if it could chat.
pub fn first_that_chats(names: &[String]) -> Option<&String> {
    names.iter().find(|name| {
        let name = name.to_ascii_lowercase();
        !NO_CHAT.iter().any(|part| name.contains(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_is_told_from_anything_else() {
        let all = |body: &str| names(body.as_bytes());
        let two =
            all(r#"{"object":"list","models":[1],"data":[{"id":"a","meta":null},{"id":"b"}]}"#);
        assert_eq!(two, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(all(r#"{"object":"list","data":null}"#), Some(Vec::new()));
        assert_eq!(all(r#"{"data":[]}"#), Some(Vec::new()));
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
            assert_eq!(all(body), None, "{body}");
        }
    }

    #[test]
    fn the_first_model_that_chats_is_meant() {
        let names = ["nomic-embed-text", "BGE-m3", "Whisper-1", "qwen", "llama"].map(String::from);
        assert_eq!(first_that_chats(&names).unwrap(), "qwen");
        assert_eq!(first_that_chats(names.get(..3).unwrap()), None);
    }
}
