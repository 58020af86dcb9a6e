//! A namespace that is spread over several partitions, read as one: each of its parts has rows under a name of its own.

use std::collections::{HashMap, VecDeque};

use super::{
    Ledger, LedgerError, MemberFilter, MemberPage, PartitionRow, RedemptionFilter,
    RedemptionRecord, sql::sql,
};
use crate::domain::{Cursor, Millis, Namespace, Partition, Position, Positions};

/// Rows that are read of a part at once, at least.
const CHUNK_MIN: u32 = 16;

/// The namespace `$1` and its shards: a comma comes right behind a plus, and no other name lies between.
const PARTS: &str = "(name = $1 OR (name > $1 || '+' AND name < $1 || ','))";

/// Some redemptions of several parts, in the order that was asked for.
#[derive(Debug, Clone)]
pub struct MergedRedemptions {
    /// The redemptions.
    pub rows: Vec<RedemptionRecord>,
    /// Where the next page begins in each part, if there is one. A part that is not named is read from its beginning.
    pub next: Option<HashMap<Namespace, Cursor>>,
}

/// What has been read of a part and not been taken.
struct Source<P, R> {
    rows: VecDeque<R>,
    /// Behind what was read.
    read_to: Option<P>,
    more: bool,
    /// Behind what was taken.
    taken_to: Option<P>,
}

/// Takes rows of several sources, of those that come next in each always the one with the lowest key.
async fn merged<P: Clone, R, K: Ord>(
    from: Vec<Option<P>>,
    limit: u32,
    read: impl AsyncFn(usize, Option<P>, u32) -> Result<(Vec<R>, bool), LedgerError>,
    place: impl Fn(&R) -> P,
    key: impl Fn(&R) -> K,
) -> Result<(Vec<R>, Vec<Source<P, R>>), LedgerError> {
    let count = u32::try_from(from.len()).unwrap_or(u32::MAX).max(1);
    let chunk = (limit / count * 2).max(CHUNK_MIN).min(limit);
    let mut sources: Vec<_> = from
        .into_iter()
        .map(|place| Source {
            rows: VecDeque::new(),
            read_to: place.clone(),
            more: true,
            taken_to: place,
        })
        .collect();
    let mut taken = Vec::new();
    loop {
        for (number, source) in sources.iter_mut().enumerate() {
            if source.rows.is_empty() && source.more {
                let (rows, more) = read(number, source.read_to.clone(), chunk).await?;
                source.read_to = rows.last().map(&place).or(source.read_to.take());
                (source.rows, source.more) = (rows.into(), more);
            }
        }
        if taken.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            break;
        }
        let heads = sources.iter_mut().filter(|source| !source.rows.is_empty());
        let Some(lowest) = heads.min_by_key(|source| source.rows.front().map(&key)) else { break };
        let Some(row) = lowest.rows.pop_front() else { break };
        lowest.taken_to = Some(place(&row));
        taken.push(row);
    }
    Ok((taken, sources))
}

impl Ledger {
    /// Everything that a namespace consists of: itself, also if it is not there, and its shards if it is spread or was.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn parts(&self, namespace: &Namespace) -> Result<Vec<Namespace>, LedgerError> {
        let rows = sql(format!("SELECT name, spread FROM namespaces WHERE {PARTS} ORDER BY name"))
            .bind(namespace.as_str())
            .fetch_all(&self.reader)
            .await
            .map_err(LedgerError::of("reading the parts of a namespace"))?;
        let mut parts = vec![namespace.clone()];
        for row in rows {
            let name = row.parsed("name", Namespace::stored)?;
            if name == *namespace {
                // Also those that are to be, and of which nothing is known here yet.
                let spread = u16::try_from(row.number("spread")?).unwrap_or(1);
                parts.extend(namespace.shards(spread).filter(|_| spread > 1));
            } else if !parts.contains(&name) {
                parts.push(name);
            }
        }
        Ok(parts)
    }

    /// Of what a namespace consists of, that which lies in a partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub(super) async fn parts_in(
        &self,
        namespace: &Namespace,
        partition: Partition,
    ) -> Result<Vec<Namespace>, LedgerError> {
        let rows = sql(format!("SELECT name FROM namespaces WHERE {PARTS} AND partition = $2"))
            .bind(namespace.as_str())
            .bind(partition.0)
            .fetch_all(&self.reader)
            .await
            .map_err(LedgerError::of("reading the parts of a namespace"))?;
        rows.iter().map(|row| row.parsed("name", Namespace::stored)).collect()
    }

    /// When the ledger last got something of these partitions: of the one that it has got nothing of for longest.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn all_synced_at(
        &self,
        partitions: &[Partition],
    ) -> Result<Option<Millis>, LedgerError> {
        if let [only] = partitions {
            return self.synced_at(*only).await;
        }
        let rows = self.partitions().await?;
        let of_these = rows.iter().filter(|row| partitions.contains(&row.partition));
        Ok(of_these.map(|row| row.synced_at).min().flatten())
    }

    /// How far it is in each partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn cursors(&self) -> Result<Positions, LedgerError> {
        let rows = self.partitions().await?;
        let position =
            |row: &PartitionRow| Position { partition: row.partition, cursor: row.cursor };
        Ok(rows.iter().map(position).collect())
    }

    /// Redemptions of several parts by the moment at which they were made, of each part from a place on if one is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn redemptions_of(
        &self,
        parts: &[(Namespace, RedemptionFilter)],
        from: &HashMap<Namespace, Cursor>,
        limit: u32,
    ) -> Result<MergedRedemptions, LedgerError> {
        if let [(only, filter)] = parts {
            let page = self.redemptions(only, filter, from.get(only).copied(), limit).await?;
            let next = page.next.map(|next| HashMap::from([(only.clone(), next)]));
            return Ok(MergedRedemptions { rows: page.rows, next });
        }
        let oldest_first = parts.iter().any(|(_, filter)| filter.oldest_first);
        let (rows, sources) = merged(
            parts.iter().map(|(part, _)| from.get(part).copied()).collect(),
            limit,
            async |number, from, limit| {
                let (part, filter) = &parts[number];
                let page = self.redemptions(part, filter, from, limit).await?;
                Ok((page.rows, page.next.is_some()))
            },
            |row: &RedemptionRecord| row.redemption.position.cursor,
            |row: &RedemptionRecord| {
                let at = (row.redemption.redeemed_at.as_ms(), row.redemption.id.0.as_u128());
                if oldest_first { at } else { (-at.0, !at.1) }
            },
        )
        .await?;
        let more = sources.iter().any(|source| !source.rows.is_empty());
        let next = more.then(|| {
            let places = parts.iter().zip(&sources).filter_map(|((part, _), source)| {
                let untaken = || {
                    // What is added later comes before all of this page, and not on the next one.
                    let first = source.rows.front().map(|row| row.redemption.position.cursor);
                    let behind = first.map_or(Cursor { epoch: 0, seq: 0 }, Cursor::next);
                    (!oldest_first).then_some(behind)
                };
                Some((part.clone(), source.taken_to.or_else(untaken)?))
            });
            places.collect()
        });
        Ok(MergedRedemptions { rows, next })
    }

    /// Memberships of several parts by user and group, after a place if one is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn members_of(
        &self,
        parts: &[Namespace],
        filter: &MemberFilter,
        after: Option<&(String, String)>,
        limit: u32,
    ) -> Result<MemberPage, LedgerError> {
        if let [only] = parts {
            return self.members(only, filter, after, limit).await;
        }
        let (rows, sources) = merged(
            vec![after.cloned(); parts.len()],
            limit,
            async |number, after: Option<(String, String)>, limit| {
                let page = self.members(&parts[number], filter, after.as_ref(), limit).await?;
                Ok((page.rows, page.next.is_some()))
            },
            |row| (row.user.to_string(), row.group.to_string()),
            |row| (row.user.to_string(), row.group.to_string()),
        )
        .await?;
        let more = sources.iter().any(|source| !source.rows.is_empty());
        let next = rows.last().filter(|_| more);
        let next = next.map(|last| (last.user.to_string(), last.group.to_string()));
        Ok(MemberPage { rows, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads lists of numbers, as much at once as it is asked for.
    async fn take(
        lists: &[Vec<u32>],
        from: Vec<Option<u32>>,
        limit: u32,
    ) -> (Vec<u32>, Vec<Option<u32>>) {
        let read = async |number: usize, after: Option<u32>, limit: u32| {
            let rest = lists[number].iter().copied().filter(|one| Some(*one) > after);
            let rest: Vec<_> = rest.collect();
            let limit = limit as usize;
            Ok((rest.iter().copied().take(limit).collect(), rest.len() > limit))
        };
        let (rows, sources) = merged(from, limit, read, |row| *row, |row| *row).await.unwrap();
        (rows, sources.iter().map(|source| source.taken_to).collect())
    }

    #[tokio::test]
    async fn pages_of_several_lists_are_all_of_them_in_order() {
        let lists =
            [(0..300).step_by(3).collect(), vec![], (1..300).step_by(100).collect(), vec![2]];
        let mut expected: Vec<u32> = lists.iter().flatten().copied().collect();
        expected.sort_unstable();
        for limit in [1, 2, 7, 40, 1000] {
            let (mut all, mut from) = (Vec::new(), vec![None; lists.len()]);
            loop {
                let (rows, next) = take(&lists, from, limit).await;
                if rows.is_empty() {
                    break;
                }
                all.extend(rows);
                from = next;
            }
            assert_eq!(all, expected, "{limit} at a time");
        }
    }
}
