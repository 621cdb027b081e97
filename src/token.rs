//! The secret that authorizes requests to the API: 256 random bits, new at every start.
//!
//! It is in `state.json`, and `opta daemon token` prints it. No argument, environment, URL or log
//! has it.

use std::fmt;
use std::str::Chars;

use nanoserde::{DeJson, DeJsonErr, DeJsonState, SerJson, SerJsonState};

use crate::error::{Doing, Error};
use crate::sys;

const PREFIX: &str = "opta_dk_";

/// A token: `opta_dk_` and 64 hexadecimal digits.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Generates a token. Fails if the kernel returns no random bytes; there is no weaker source.
    pub fn generate() -> Result<Token, Error> {
        let mut bytes = [0_u8; 32];
        sys::random(&mut bytes).doing("get random bytes for a token")?;
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in bytes {
            text.push_str(&format!("{byte:02x}"));
        }
        Ok(Token(text))
    }

    /// Accepts a token from `state.json` if it can be sent in a header unchanged.
    fn parse(text: String) -> Option<Token> {
        let plain = text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic());
        (plain && !text.is_empty()).then_some(Token(text))
    }

    /// Returns the secret, for the two places that must write it.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Returns whether `presented` is the token, after a time that does not depend on where they
    /// differ.
    pub fn matches(&self, presented: &[u8]) -> bool {
        let ours = self.0.as_bytes();
        let differences = ours
            .iter()
            .zip(presented)
            .fold(0_u8, |differences, (ours, theirs)| differences | (ours ^ theirs));
        // The length is not secret, but must not cut the comparison of the bytes short.
        std::hint::black_box(differences) == 0 && ours.len() == presented.len()
    }
}

/// Generates a name of `count` characters that are valid in URLs, each with six bits of randomness.
pub fn random_name(count: usize) -> Result<String, Error> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0_u8; 32];
    sys::random(&mut bytes).doing("get random bytes for a name")?;
    let letters = bytes.iter().take(count).filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
    Ok(letters.map(|letter| char::from(*letter)).collect())
}

impl SerJson for Token {
    fn ser_json(&self, depth: usize, state: &mut SerJsonState) {
        self.0.ser_json(depth, state);
    }
}

impl DeJson for Token {
    fn de_json(state: &mut DeJsonState, input: &mut Chars<'_>) -> Result<Token, DeJsonErr> {
        let text = String::de_json(state, input)?;
        Token::parse(text).ok_or_else(|| state.err_parse("token"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token::generate().unwrap();
        let secret = token.secret().to_owned();
        assert_eq!(secret.len(), 8 + 64);
        assert!(token.matches(secret.as_bytes()));
        assert!(!token.matches(secret.get(..71).unwrap().as_bytes()));
        assert!(!token.matches(format!("{secret}0").as_bytes()));
        assert!(!token.matches(b""));
        assert!(!token.matches(secret.to_uppercase().as_bytes()));
    }

    #[test]
    fn a_token_is_hidden_in_debug_output_and_never_repeats() {
        let token = Token::generate().unwrap();
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert_ne!(token.secret(), Token::generate().unwrap().secret());
    }
}
