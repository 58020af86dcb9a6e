//! What the codes of a batch look like, and which they are.
//!
//! The codes that a pattern can make are numbers, in order. A batch of N codes cuts them into N equal shares and draws
//! one number from each. So no two codes of a batch are equal, whatever is drawn; which code is the i-th follows from
//! the batch's secret and i alone, so that whoever goes on after a crash makes the same ones; and they come in order,
//! which an index of SQL takes many times faster than the same codes in any order. Who has seen some of them knows
//! nothing of another but its share, of which there are at least [`SHARE_MIN`] codes to guess.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Code, CodeCase, check, code::lenient, name::Malformed};

/// The most codes of one batch.
pub const COUNT_MAX: u64 = 10_000_000;

/// How many codes there must be for each that is made: with the default limit of misses, one address needs 20 days to
/// guess one.
pub const SHARE_MIN: u128 = 10_000;

/// The most random characters of a pattern: a hundred bits, which leaves room for counting in 128.
const RANDOM_MAX: usize = 20;

/// The characters that are drawn from, in the order of their bytes. None has two that look alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alphabet {
    /// Digits and upper-case letters without I, L, O and U: 32. Source: Crockford, "Base 32".
    #[default]
    Unambiguous,
    /// 10.
    Digits,
    /// Upper-case letters without I, L, O and U: 22.
    Letters,
}

impl Alphabet {
    /// Every alphabet.
    pub const ALL: [Self; 3] = [Self::Unambiguous, Self::Digits, Self::Letters];

    /// The word used in SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unambiguous => "unambiguous",
            Self::Digits => "digits",
            Self::Letters => "letters",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the three words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|alphabet| alphabet.as_str() == text)
            .ok_or_else(|| Malformed("alphabet is unambiguous, digits or letters".to_owned()))
    }

    fn characters(self) -> &'static [u8] {
        const ALL: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        match self {
            Self::Unambiguous => ALL,
            Self::Digits => &ALL[..10],
            Self::Letters => &ALL[10..],
        }
    }

    fn has(self, character: char) -> bool {
        self.characters().iter().any(|one| char::from(*one) == character)
    }
}

/// What codes look like: `#` is a random character, a `*` at the end a check character, all else stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// # Errors
    /// [`Malformed`] when it is no pattern, with what it must be.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let malformed = |what: &str| Err(Malformed(what.to_owned()));
        let body = text.strip_suffix('*').unwrap_or(text);
        if !(1..=Code::CHARS_MAX).contains(&text.len())
            || !body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'#'))
        {
            return malformed(
                "a pattern is 1 to 64 letters, digits, - and _, with # for each random character, and * at the end \
                 for a check character",
            );
        }
        if !(1..=RANDOM_MAX).contains(&body.matches('#').count()) {
            return malformed("a pattern has 1 to 20 random characters (#)");
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its codes end in a check character.
    #[must_use]
    pub fn has_check(&self) -> bool {
        self.0.ends_with('*')
    }

    /// How many different codes it can make; with a check character only those where that is one of the alphabet.
    #[must_use]
    pub fn space(&self, alphabet: Alphabet) -> u128 {
        let characters = alphabet.characters().len() as u128;
        let all = self.0.bytes().filter(|b| *b == b'#').fold(1_u128, |all, _| all * characters);
        if self.has_check() { all * characters / 36 } else { all }
    }

    /// A code as it is handed out: with the pattern's own characters where the namespace leaves them out or folds them.
    #[must_use]
    pub fn print(&self, code: &Code, case: CodeCase) -> String {
        if case != CodeCase::Lenient {
            return code.as_str().to_owned();
        }
        let mut kept = code.as_str().chars();
        let print = |place: char| match place {
            '#' | '*' => kept.next(),
            literal => {
                if lenient(literal).is_some() {
                    kept.next();
                }
                Some(literal.to_ascii_uppercase())
            }
        };
        self.0.chars().filter_map(print).collect()
    }

    /// The text with these random characters, the last of them first.
    fn fill(&self, mut number: u128, alphabet: Alphabet) -> String {
        let characters = alphabet.characters();
        let mut text: Vec<u8> = self.0.bytes().filter(|b| *b != b'*').collect();
        for place in text.iter_mut().rev().filter(|place| **place == b'#') {
            let count = characters.len() as u128;
            *place = characters[usize::try_from(number % count).unwrap_or_default()];
            number /= count;
        }
        text.into_iter().map(char::from).collect()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The codes of a batch.
#[derive(Clone)]
pub struct Codes {
    /// What they look like.
    pub pattern: Pattern,
    /// What they are made of.
    pub alphabet: Alphabet,
    /// How their namespace reads them.
    pub case: CodeCase,
    /// How many there are.
    pub count: u64,
    /// What they follow from; nobody may know it.
    pub secret: [u8; 16],
}

impl Codes {
    /// The code of a slot, which is less than the count. Where somebody else has it, the next `attempt` is another one
    /// of the slot's share.
    ///
    /// # Errors
    /// [`Malformed`] when the pattern can make no code.
    pub fn code(&self, slot: u64, attempt: u32) -> Result<Code, Malformed> {
        let characters = self.pattern.0.bytes().filter(|b| *b == b'#').count();
        let all =
            (0..characters).fold(1_u128, |all, _| all * self.alphabet.characters().len() as u128);
        let share = (all / u128::from(self.count.max(1))).max(1);
        // Those whose check character is not in the alphabet are no codes: the share's next is drawn.
        let mut draw = 0_u32;
        loop {
            let number = u128::from(slot) * share + self.random(slot, attempt, draw) % share;
            let code = Code::parse(&self.pattern.fill(number, self.alphabet), self.case)?;
            if !self.pattern.has_check() {
                return Ok(code);
            }
            let character = check::character(code.as_str());
            if self.alphabet.has(character) {
                return Code::parse(&format!("{code}{character}"), self.case);
            }
            draw = draw.wrapping_add(1);
        }
    }

    /// 128 bits that nobody can tell from random ones without the secret. What is hashed has always the same length, so
    /// that nothing can be appended to it.
    fn random(&self, slot: u64, attempt: u32, draw: u32) -> u128 {
        let mut hash = Sha256::new_with_prefix(self.secret);
        hash.update(slot.to_be_bytes());
        hash.update(attempt.to_be_bytes());
        hash.update(draw.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        u128::from_be_bytes(bytes)
    }
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, alphabet, case, count, secret: _ } = self;
        write!(f, "{count} codes like {pattern}, {alphabet:?}, {case:?}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn codes(pattern: &str, alphabet: Alphabet, case: CodeCase, count: u64) -> Codes {
        let pattern = Pattern::parse(pattern).unwrap();
        Codes { pattern, alphabet, case, count, secret: [7; 16] }
    }

    #[test]
    fn a_pattern_is_letters_and_places() {
        for good in ["#", "SPRING-####-####", "spring_####", "####*", &"#".repeat(20)] {
            assert!(Pattern::parse(good).is_ok(), "{good}");
        }
        let bad = ["", "*", "SPRING", "SPRING*", "#*#", "#**", "A B#", "Ä#", "#:", &"#".repeat(21)];
        for bad in bad.into_iter().chain([format!("#{}", "A".repeat(64)).as_str()]) {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_space_is_what_can_be_told_apart() {
        let space = |pattern: &str, alphabet| Pattern::parse(pattern).unwrap().space(alphabet);
        assert_eq!(space("SPRING-####-####", Alphabet::Unambiguous), 1 << 40);
        assert_eq!(space("A##", Alphabet::Digits), 100);
        assert_eq!(space("##*", Alphabet::Digits), 27);
        assert_eq!(space(&"#".repeat(20), Alphabet::Unambiguous), 1 << 100);
    }

    #[test]
    fn a_lenient_code_is_printed_as_its_pattern_says() {
        let codes = codes("Oil-####_##*", Alphabet::Unambiguous, CodeCase::Lenient, 10);
        let code = codes.code(3, 0).unwrap();
        let printed = codes.pattern.print(&code, CodeCase::Lenient);
        assert!(printed.starts_with("OIL-") && printed.len() == 12, "{printed}");
        assert!(code.as_str().starts_with("011") && code.as_str().len() == 10, "{code}");
        assert_eq!(Code::parse(&printed, CodeCase::Lenient).unwrap(), code);
        assert!(check::fits(code.as_str()));
    }

    #[test]
    fn nobody_reads_the_secret_in_a_log() {
        assert!(
            !format!("{:?}", codes("##", Alphabet::Digits, CodeCase::Sensitive, 1)).contains('7')
        );
    }

    #[test]
    fn other_secrets_slots_and_attempts_make_other_codes() {
        let one = codes("########", Alphabet::Unambiguous, CodeCase::Insensitive, 10);
        let two = Codes { secret: [8; 16], ..one.clone() };
        assert_eq!(one.code(4, 0).unwrap(), one.code(4, 0).unwrap());
        assert_ne!(one.code(4, 0).unwrap(), one.code(4, 1).unwrap());
        assert_ne!(one.code(4, 0).unwrap(), two.code(4, 0).unwrap());
    }

    proptest! {
        #[test]
        fn no_two_codes_of_a_batch_are_equal_and_they_come_in_order(
            pattern in select(vec!["A-###-#", "####*", "#X#x##"]),
            alphabet in select(Alphabet::ALL.to_vec()),
            case in select(vec![CodeCase::Insensitive, CodeCase::Sensitive, CodeCase::Lenient]),
            count in 1..60_u64,
            secret in any::<[u8; 16]>(),
            attempts in prop::collection::vec(0..3_u32, 60),
        ) {
            let codes = Codes { secret, ..codes(pattern, alphabet, case, count) };
            let slots = (0..count).zip(&attempts);
            let made: Vec<_> =
                slots.map(|(slot, attempt)| codes.code(slot, *attempt).unwrap()).collect();
            prop_assert!(made.is_sorted_by(|a, b| a < b), "{:?}", made);
            for code in &made {
                prop_assert_eq!(&Code::parse(code.as_str(), case).unwrap(), code);
                let checked = !codes.pattern.has_check() || check::fits(code.as_str());
                prop_assert!(checked, "{}", code);
            }
        }
    }
}
