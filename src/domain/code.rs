//! Invite codes as people type them, and as the gate knows them.

use std::fmt;

use super::name::{Malformed, text_type};

/// What counts as the same code. Fixed when a namespace is made, since it decides what a code *is*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeCase {
    /// Codes are folded to upper case.
    #[default]
    Insensitive,
    /// Codes are taken as they are.
    Sensitive,
    /// As insensitive, and what is easily mistaken is one: O is 0, I and L are 1, and `-`, `_` and spaces are left out.
    Lenient,
}

impl CodeCase {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Insensitive, Self::Sensitive, Self::Lenient];

    /// The word used in Redis, SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insensitive => "insensitive",
            Self::Sensitive => "sensitive",
            Self::Lenient => "lenient",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the three words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        match text {
            "insensitive" => Ok(Self::Insensitive),
            "sensitive" => Ok(Self::Sensitive),
            "lenient" => Ok(Self::Lenient),
            _ => Err(Malformed("code_case is insensitive, sensitive or lenient".to_owned())),
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

    /// The most that may be typed: separators that are left out need room too.
    const TYPED_CHARS_MAX: usize = 2 * Self::CHARS_MAX;

    /// Reads what a person typed: spaces around it are dropped, and what counts as the same becomes the same, as the
    /// namespace says. A code that was read before stays as it is.
    ///
    /// # Errors
    /// [`Malformed`] when what is left is not 1 to 64 letters, digits, `-` and `_`.
    pub fn parse(typed: &str, case: CodeCase) -> Result<Self, Malformed> {
        let typed = typed.trim_matches(' ');
        let code = match case {
            _ if typed.len() > Self::TYPED_CHARS_MAX => String::new(),
            CodeCase::Insensitive => typed.to_ascii_uppercase(),
            CodeCase::Sensitive => typed.to_owned(),
            CodeCase::Lenient => typed.chars().filter_map(lenient).collect(),
        };
        let fits = (1..=Self::CHARS_MAX).contains(&code.len())
            && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(code.into()))
        } else {
            Err(Malformed("a code is 1 to 64 letters, digits, - and _".to_owned()))
        }
    }
}

/// What a character of a lenient code counts as; nothing for a separator.
pub(super) fn lenient(character: char) -> Option<char> {
    match character.to_ascii_uppercase() {
        '-' | '_' | ' ' => None,
        'O' => Some('0'),
        'I' | 'L' => Some('1'),
        other => Some(other),
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
    fn a_lenient_code_may_be_typed_as_people_do() {
        for typed in
            ["SPRING-7K2O-LIQX", " spr1ng 7k20 11qx ", "Spring_7K2o--l1Qx", "SPR1NG7K2011QX"]
        {
            assert_eq!(
                Code::parse(typed, CodeCase::Lenient).unwrap().as_str(),
                "SPR1NG7K2011QX",
                "{typed}"
            );
        }
        for bad in ["", "-", " _ ", &"A".repeat(65), &"-".repeat(129), "A:B", "A\tB"] {
            assert!(Code::parse(bad, CodeCase::Lenient).is_err(), "{bad:?}");
        }
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
