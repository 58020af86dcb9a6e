//! Invite codes as people type them, and as the gate knows them.

use std::fmt;

use super::name::{Malformed, text_type};

/// Whether `welcome` and `WELCOME` are one code. Fixed when a namespace is made, since it decides what a code *is*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeCase {
    /// Codes are folded to upper case.
    #[default]
    Insensitive,
    /// Codes are taken as they are.
    Sensitive,
}

impl CodeCase {
    /// The word used in Redis, SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insensitive => "insensitive",
            Self::Sensitive => "sensitive",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is neither `insensitive` nor `sensitive`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        match text {
            "insensitive" => Ok(Self::Insensitive),
            "sensitive" => Ok(Self::Sensitive),
            _ => Err(Malformed("code_case is insensitive or sensitive".to_owned())),
        }
    }
}

text_type! {
    /// A normalised code: `[A-Z0-9_-]{1,64}`, and `a-z` too where the namespace is case-sensitive. The grammar has no
    /// `:`, `{` or `}`, so a code can never name another key.
    Code
}

impl Code {
    /// The longest code, in characters.
    pub const CHARS_MAX: usize = 64;

    /// Reads what a person typed: spaces around it are dropped, and case is folded as the namespace says.
    ///
    /// # Errors
    /// [`Malformed`] when what is left is not 1 to 64 letters, digits, `-` and `_`.
    pub fn parse(typed: &str, case: CodeCase) -> Result<Self, Malformed> {
        let typed = typed.trim_matches(' ');
        let fits = (1..=Self::CHARS_MAX).contains(&typed.len())
            && typed.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !fits {
            return Err(Malformed("a code is 1 to 64 letters, digits, - and _".to_owned()));
        }
        Ok(Self(match case {
            CodeCase::Insensitive => typed.to_ascii_uppercase().into(),
            CodeCase::Sensitive => typed.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_folded_as_its_namespace_says() {
        assert_eq!(
            Code::parse(" welcome-1 ", CodeCase::Insensitive).unwrap().as_str(),
            "WELCOME-1"
        );
        assert_eq!(Code::parse("Welcome_1", CodeCase::Sensitive).unwrap().as_str(), "Welcome_1");
    }

    #[test]
    fn a_code_can_not_look_like_another_key() {
        for bad in
            ["", " ", "WELCOME:held", "{07}", "A B", "A\0B", "Ä", "ſ", "\u{212a}", &"A".repeat(65)]
        {
            assert!(Code::parse(bad, CodeCase::Insensitive).is_err(), "{bad:?}");
        }
    }
}
