//! Members by the million, written into Redis directly: whole hashes, exactly as a redemption leaves them.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
};

use anyhow::{Context as _, ensure};
use redeemer::{
    domain::{
        Code, CodeCase, Cursor, Group, MembershipRule, Millis, Namespace, Partition, Position,
        Redemption, UserId,
        member::{Remembered, UserRecord},
    },
    gate::{
        contents::{self, Values},
        key::Keyspace,
    },
};

use super::{load::hexadecimal, servers::Redis};

/// What stands in the pattern for what differs between two members; as long as what takes its place.
const USER: &str = "fsssssssssss";
const REQUEST: &str = "01a20967-45a7-7482-bb99-bbbbbbbbbbbb";
const REDEMPTION: &str = "01a20967-45a7-7482-bb99-aaaaaaaaaaaa";
const NUMBER: u64 = 77_777_777;
/// The number of the first member; all have as many digits.
const NUMBER_MIN: u64 = 10_000_000;
/// Members of one write.
const AT_ONCE: u64 = 500;

/// One member as commands of Redis, with the places that differ.
struct Pattern {
    text: Vec<u8>,
    /// Twelve hexadecimal digits, or eleven behind the letter of a user.
    identities: Vec<(usize, usize)>,
    /// Eight decimal digits.
    numbers: Vec<usize>,
}

fn places(text: &[u8], what: &str) -> Vec<usize> {
    let what = what.as_bytes();
    (0..text.len().saturating_sub(what.len())).filter(|at| text[*at..].starts_with(what)).collect()
}

impl Pattern {
    fn new(keys: &Keyspace) -> anyhow::Result<Self> {
        let namespace = Namespace::default_namespace();
        let user = UserId::parse(USER)?;
        let cursor = Cursor { epoch: 1, seq: NUMBER };
        let group = Group::parse("team")?;
        let redemption = Redemption {
            id: REDEMPTION.parse()?,
            namespace: namespace.clone(),
            invite: "01a20967-458c-743e-8cdd-822b75511292".parse()?,
            code: Code::parse("WELCOME", CodeCase::Insensitive)?,
            group: group.clone(),
            user: user.clone(),
            ordinal: NUMBER,
            remaining: Some(900_000_000),
            redeemed_at: Millis::from_ms(1_764_000_000_000)?,
            position: Position { partition: Partition(0), cursor },
        };
        let record = UserRecord {
            namespace,
            user,
            rule: MembershipRule::OneGroup,
            memberships: vec![(group, cursor, None)],
            redemptions: vec![Remembered {
                redemption,
                request: REQUEST.to_owned(),
                counts: true,
                rolled_back_at: None,
            }],
        };
        let (key, values) = contents::of_user(keys, &record);
        let Values::Hash(values) = values else { anyhow::bail!("a member is a hash") };
        let words = ["HSET".to_owned(), key].into_iter().chain(values);
        let words: Vec<_> = words.map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        let text = format!("*{}\r\n{}", words.len(), words.concat());
        let text = text.into_bytes();
        let mut identities = Vec::new();
        for (sentinel, length) in [(USER, 11), (REQUEST, 12), (REDEMPTION, 12)] {
            let found = places(&text, sentinel);
            ensure!(!found.is_empty(), "a member has no {sentinel}");
            identities.extend(found.iter().map(|at| (at + sentinel.len() - length, length)));
        }
        let numbers = places(&text, &NUMBER.to_string());
        ensure!(!numbers.is_empty(), "a member has no position");
        Ok(Self { text, identities, numbers })
    }

    /// Makes it the member of this number.
    fn number(&mut self, number: u64) {
        let digits = hexadecimal(number);
        for (at, length) in &self.identities {
            self.text[*at..at + length].copy_from_slice(&digits[12 - length..]);
        }
        let mut left = number;
        let mut digits = [0; 8];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or_default();
            left /= 10;
        }
        for at in &self.numbers {
            self.text[*at..at + 8].copy_from_slice(&digits);
        }
    }
}

/// Writes the members of these numbers.
pub(crate) fn fill(
    redis: &Redis,
    keys: &Keyspace,
    members: std::ops::Range<u64>,
) -> anyhow::Result<()> {
    let mut pattern = Pattern::new(keys)?;
    let mut stream = UnixStream::connect(redis.socket())?;
    let mut answers = stream.try_clone()?;
    let count = members.end.saturating_sub(members.start);
    thread::scope(|scope| {
        let reading = scope.spawn(move || -> anyhow::Result<()> {
            let mut left = count;
            let mut bytes = vec![0; 1 << 16];
            while left > 0 {
                let got = answers.read(&mut bytes)?;
                ensure!(got > 0, "Redis has closed the connection");
                let got = &bytes[..got];
                if let Some(at) = got.iter().position(|byte| *byte == b'-') {
                    anyhow::bail!("Redis says {}", String::from_utf8_lossy(&got[at..]));
                }
                // Each answer is one line.
                let lines = got.split(|byte| *byte == b'\n').count() - 1;
                left = left.saturating_sub(lines as u64);
            }
            Ok(())
        });
        let mut block = Vec::new();
        let mut next = members.start;
        while next < members.end {
            block.clear();
            let until = members.end.min(next + AT_ONCE);
            for number in next..until {
                pattern.number(NUMBER_MIN + number);
                block.extend_from_slice(&pattern.text);
            }
            stream.write_all(&block).context("writing members")?;
            next = until;
        }
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    })
}
