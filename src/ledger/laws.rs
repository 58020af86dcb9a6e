//! The laws that the ledger's rows must obey, whatever the gate says.

use super::{Ledger, LedgerError, sql::sql};
use crate::domain::Partition;

/// Each with what it means when it finds something; each finds a namespace, if it is about one, and a line of text.
const LAWS: [(&str, &str); 11] = [
    (
        "an invite's uses are not its redemptions",
        "SELECT i.namespace, i.namespace || ' ' || i.code || ' (' || i.id || '): uses ' || i.uses || ', granted ' || i.granted
             || ', imported ' || i.imported || ', redemptions that hold ' || (COUNT(r.id) - COUNT(r.rolled_back_at)) || ', last '
             || COALESCE(MAX(r.ordinal), 0) AS what
         FROM invites i LEFT JOIN redemptions r ON r.invite = i.id WHERE i.partition = $1
         GROUP BY i.id HAVING i.uses <> i.imported + COUNT(r.id) - COUNT(r.rolled_back_at)
             OR i.granted <> COALESCE(MAX(r.ordinal), i.imported)",
    ),
    (
        "an invite has more uses than its limit",
        "SELECT namespace, namespace || ' ' || code || ' (' || id || '): ' || uses || ' of ' || max_uses AS what
         FROM invites WHERE partition = $1 AND uses > max_uses",
    ),
    (
        "more uses came than were given",
        // Of an invite that is being deleted one participant may be gone before another; all uses are at home then.
        "SELECT t.namespace, t.namespace || ' (' || t.invite || '): ' || t.taken || ' from participant ' || t.participant
             || ', which has given ' || COALESCE(g.given, 0) AS what
         FROM moves t JOIN invites i ON i.id = t.invite
             LEFT JOIN moves g ON g.whole = t.whole AND g.own = t.participant AND g.participant = t.own
         WHERE t.partition = $1 AND t.taken > COALESCE(g.given, 0)
             AND (g.given IS NOT NULL OR t.own > 0 AND i.max_uses > 0)",
    ),
    (
        "a share is not what has come and gone",
        "SELECT i.namespace, i.namespace || ' ' || i.code || ' (' || i.id || '): may spend ' || i.max_uses || ' here, total '
             || COALESCE(i.total, 0) || ', ' || COALESCE(SUM(m.taken), 0) || ' came, ' || COALESCE(SUM(m.given), 0)
             || ' went' AS what
         FROM invites i LEFT JOIN moves m ON m.invite = i.id
         WHERE i.partition = $1 AND (i.total IS NOT NULL OR m.invite IS NOT NULL)
         GROUP BY i.id
         HAVING i.max_uses <> COALESCE(i.total, 0) + COALESCE(SUM(m.taken), 0) - COALESCE(SUM(m.given), 0)",
    ),
    (
        "uses of an invite that is not there have moved",
        "SELECT namespace, namespace || ' (' || invite || '): participant ' || participant || ', ' || taken || ' came, '
             || given || ' went' AS what
         FROM moves WHERE partition = $1 AND NOT EXISTS (SELECT 1 FROM invites WHERE invites.id = moves.invite)
             AND NOT EXISTS (SELECT 1 FROM campaigns WHERE campaigns.pool = moves.invite)",
    ),
    (
        "more uses of a campaign came than were given",
        "SELECT t.namespace, t.namespace || ' ' || c.name || ': ' || t.taken || ' from participant ' || t.participant
             || ', which has given ' || COALESCE(g.given, 0) AS what
         FROM moves t JOIN campaigns c ON c.pool = t.invite
             LEFT JOIN moves g ON g.whole = t.whole AND g.own = t.participant AND g.participant = t.own
         WHERE t.partition = $1 AND t.taken > COALESCE(g.given, 0)",
    ),
    (
        "a campaign's share is not what has come and gone",
        "SELECT c.namespace, c.namespace || ' ' || c.name || ': may spend ' || c.max_uses || ' here, total '
             || COALESCE(c.total, 0) || ', ' || COALESCE(SUM(m.taken), 0) || ' came, ' || COALESCE(SUM(m.given), 0)
             || ' went' AS what
         FROM campaigns c LEFT JOIN moves m ON m.invite = c.pool
         WHERE c.partition = $1 AND (c.total IS NOT NULL OR m.invite IS NOT NULL)
         GROUP BY c.namespace, c.name
         HAVING c.max_uses <> COALESCE(c.total, 0) + COALESCE(SUM(m.taken), 0) - COALESCE(SUM(m.given), 0)",
    ),
    (
        "a campaign's uses are not those of its invites",
        "SELECT c.namespace, c.namespace || ' ' || c.name || ': uses ' || c.uses || ', limit '
             || COALESCE(CAST(c.max_uses AS TEXT), 'none') || ', invites have ' || COALESCE(SUM(i.uses), 0) AS what
         FROM campaigns c LEFT JOIN invites i ON i.namespace = c.namespace AND i.campaign = c.name
         WHERE c.partition = $1 GROUP BY c.namespace, c.name
         HAVING c.uses <> COALESCE(SUM(i.uses), 0) OR c.uses > c.max_uses",
    ),
    (
        "changes are missing",
        "SELECT NULL AS namespace, 'epoch ' || epoch || ': ' || COUNT(*) || ' of ' || MAX(seq) AS what FROM (
             SELECT epoch, seq FROM redemptions WHERE partition = $1 AND NOT EXISTS (
                 SELECT 1 FROM claims WHERE claims.id = redemptions.id AND outcome = 'applied')
             UNION SELECT epoch, seq FROM audit_log WHERE partition = $1
             UNION SELECT epoch, seq FROM dead_letters WHERE partition = $1) AS changes
         WHERE epoch >= (SELECT whole_from FROM partitions WHERE partition = $1)
         GROUP BY epoch HAVING COUNT(*) <> MAX(seq)",
    ),
    (
        "the ledger could not take a change",
        "SELECT NULL AS namespace, partition || '/' || epoch || '-' || seq || ': ' || reason AS what
         FROM dead_letters WHERE partition = $1 AND NOT handled",
    ),
    (
        "somebody was told of a redemption that is lost",
        "SELECT namespace, namespace || ' ' || code || ': ' || user_id || ', redemption ' || id || ', ' || outcome AS what
         FROM claims WHERE partition = $1 AND outcome LIKE 'lost: %'",
    ),
];

/// A breach of a law.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Breach {
    /// Whose it is; nothing for one of the whole partition.
    pub namespace: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl Ledger {
    /// Every breach of a law in a partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn broken_laws(&self, partition: Partition) -> Result<Vec<Breach>, LedgerError> {
        let failed = LedgerError::of("checking the laws");
        let mut broken = Vec::new();
        for (law, query) in LAWS {
            let found =
                sql(query).bind(partition.0).fetch_all(&self.reader).await.map_err(&failed)?;
            for row in found {
                let what = format!("{law}: {}", row.text("what")?);
                broken.push(Breach { namespace: row.maybe_text("namespace")?, what });
            }
        }
        Ok(broken)
    }
}
