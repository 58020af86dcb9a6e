//! The unit of atomicity, and how its changes are counted.

use std::{collections::BTreeMap, fmt, str::FromStr};

use super::name::Malformed;

/// A partition's number: 0 up to, not including, the deployment's count of partitions (at most 256).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A change's place in a partition's row of changes: `<epoch>-<seq>`.
///
/// `seq` counts from 1 within each epoch, without a gap; a cursor at `seq` 0 has seen nothing of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// How often the partition was opened anew: from 1.
    pub epoch: u64,
    /// The count of changes in that epoch.
    pub seq: u64,
}

impl Cursor {
    /// The place of the next change in the same epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, seq: self.seq + 1 }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

impl FromStr for Cursor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parts = text
            .split_once('-')
            .and_then(|(epoch, seq)| Some((epoch.parse().ok()?, seq.parse().ok()?)));
        match parts {
            Some((epoch, seq)) => Ok(Self { epoch, seq }),
            None => Err(Malformed(format!("{text:?} is not <epoch>-<seq>"))),
        }
    }
}

/// Where a change stands in the whole deployment: `<partition>/<epoch>-<seq>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The partition whose outbox has it.
    pub partition: Partition,
    /// Its place there.
    pub cursor: Cursor,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.cursor)
    }
}

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed(format!("{text:?} is not <partition>/<epoch>-<seq>"));
        let (partition, cursor) = text.split_once('/').ok_or_else(malformed)?;
        let partition = Partition(partition.parse().map_err(|_| malformed())?);
        Ok(Self { partition, cursor: cursor.parse().map_err(|_| malformed())? })
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How far somebody is in each of some partitions: their positions, with commas between them. In a namespace that is not
/// spread it is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<Partition, Cursor>);

impl Positions {
    /// The place in a partition, if there is one.
    #[must_use]
    pub fn of(&self, partition: Partition) -> Option<Cursor> {
        self.0.get(&partition).copied()
    }

    /// Goes to a position.
    pub fn set(&mut self, position: Position) {
        self.0.insert(position.partition, position.cursor);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Position> + '_ {
        self.0.iter().map(|(partition, cursor)| Position { partition: *partition, cursor: *cursor })
    }
}

impl FromIterator<Position> for Positions {
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        Self(
            positions
                .into_iter()
                .map(|Position { partition, cursor }| (partition, cursor))
                .collect(),
        )
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, position) in self.iter().enumerate() {
            write!(f, "{}{position}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Positions {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.split(',').map(str::parse).collect()
    }
}

impl serde::Serialize for Positions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which history of Redis a partition is open on, as the ledger says. Every script gets it and answers `fenced` when
/// its own server disagrees; a caller never learns it from Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The deployment's id: another one on the same Redis and prefix is refused.
    pub deployment: String,
    /// `master_replid` of the Redis server that the partition was opened on.
    pub lineage: String,
    /// How often the partition was opened anew.
    pub epoch: u64,
}

/// CRC-16/XMODEM, which Redis Cluster uses for its slots, and this program wherever names are spread evenly.
/// Source: Redis Cluster specification, appendix A.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text() {
        let position: Position = "7/3-42".parse().unwrap();
        assert_eq!(
            position,
            Position { partition: Partition(7), cursor: Cursor { epoch: 3, seq: 42 } }
        );
        assert_eq!(position.to_string(), "7/3-42");
        for bad in ["", "7", "7/3", "7/3-", "a/3-1", "7/3-1x", "/3-1", "7/-1"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn positions_are_one_for_each_partition() {
        let mut positions: Positions = "13/1-4,8/2-12".parse().unwrap();
        assert_eq!(positions.to_string(), "8/2-12,13/1-4");
        positions.set("13/1-5".parse().unwrap());
        assert_eq!(positions.of(Partition(13)), Some(Cursor { epoch: 1, seq: 5 }));
        assert_eq!("8/2-12".parse::<Positions>().unwrap().to_string(), "8/2-12");
        for bad in ["", ",", "8/2-12,", "8/2-12;13/1-4"] {
            assert!(bad.parse::<Positions>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_newer_epoch_is_later_than_any_seq() {
        assert!(Cursor { epoch: 2, seq: 0 } > Cursor { epoch: 1, seq: 999 });
        assert_eq!(Cursor { epoch: 2, seq: 0 }.next(), Cursor { epoch: 2, seq: 1 });
    }
}
