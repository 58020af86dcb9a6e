//! Check characters: a mistyped code is recognised where it was typed, without asking anybody.
//!
//! The scheme is ISO 7064 MOD 37,36: the last character follows from those before it. It notices every single wrong
//! character and nearly every two that changed places. `-` and `_` do not count, so that they may be typed or left out,
//! and neither does case.

/// What a character counts as; separators count for nothing. Source: ISO/IEC 7064, "Characters and their values".
fn value(character: u8) -> Option<u32> {
    char::from(character).to_digit(36)
}

/// The sum of a text so far, with which the next character is checked. Source: ISO/IEC 7064, "Hybrid systems".
fn sum(text: &str) -> u32 {
    text.bytes().filter_map(value).fold(36, |product, value| match (product + value) % 36 {
        0 => 72 % 37,
        sum => sum * 2 % 37,
    })
}

/// The character that makes a code of this text: a digit or an upper-case letter.
#[must_use]
pub fn character(text: &str) -> char {
    let value = (37 - sum(text)) % 36;
    char::from_digit(value, 36).unwrap_or('0').to_ascii_uppercase()
}

/// Whether the last character of a code follows from the others.
#[must_use]
pub fn fits(code: &str) -> bool {
    let Some((at, last)) = code.char_indices().next_back() else { return false };
    at > 0 && last.to_ascii_uppercase() == character(&code[..at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_the_check_of_the_standard() {
        // A Global Release Identifier, whose check character is of this scheme.
        // Source: IFPI, "GRid: Global Release Identifier Standard", the example.
        assert_eq!(character("A1-2425G-ABC1234002"), 'M');
        assert!(fits("A12425GABC1234002M") && fits("a1-2425g-abc1234002-m"));
        assert!(!fits("") && !fits("A"));
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(text in "[A-Z0-9]{1,20}", at in any::<prop::sample::Index>(), other in "[A-Z0-9]") {
            let code = format!("{text}{}", character(&text));
            prop_assert!(fits(&code));
            let at = at.index(code.len());
            let mut wrong = code.clone();
            wrong.replace_range(at..=at, &other);
            prop_assert_eq!(fits(&wrong), wrong == code);
        }
    }
}
