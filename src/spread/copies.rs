//! What shards have because their namespace has it: its rules, and copies of its invites.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{Inner, PAUSE, Spread, SpreadError, moves::Moving};
use crate::{
    domain::{
        Code, Invite, InviteId, Namespace, Position, Settings,
        invite::Shown,
        spread::{HOME, Pool},
    },
    gate::{
        GateError,
        copy_invite::{Copied, CopyInvite},
        copy_namespace::CopyNamespace,
        delete_invite::{DeleteInvite, Deleted},
        show_invite::{ShowInvite, Which},
        show_namespace::ShowNamespace,
    },
};

/// Who removes copies of what was deleted.
const ACTOR: &str = "spread";

/// How long a request that finds a shard missing waits until the ledger has what that needs.
const PATIENCE: Duration = Duration::from_secs(5);

impl Spread {
    /// Removes the copy of an invite that was deleted while it was copied; says whether the shard has none now.
    pub(super) async fn forget_copy(
        &self,
        shard: &Namespace,
        id: InviteId,
    ) -> Result<bool, GateError> {
        let (namespace, actor) = (shard.clone(), ACTOR.to_owned());
        let delete = DeleteInvite { id, namespace, expected_revision: None, actor };
        let deleted = delete.run(&self.inner.gate).await?;
        Ok(matches!(deleted, Deleted::Deleted | Deleted::NotFound))
    }

    /// Makes a shard that is missing; says whether its namespace is there at all.
    pub(super) async fn make_shard(
        &self,
        home: &Namespace,
        shard: &Namespace,
    ) -> Result<bool, SpreadError> {
        let question = ShowNamespace { namespace: home.clone() };
        let Some((settings, _)) = question.run(&self.inner.gate).await? else { return Ok(false) };
        if settings.archived_at.is_some() || !settings.parts(home).contains(shard) {
            return Ok(false);
        }
        self.share_settings(home, &settings, Instant::now() + PATIENCE).await?;
        Ok(true)
    }

    /// Brings the rules of a namespace to all its shards. What is answered after that holds everywhere.
    ///
    /// Nobody comes into a shard of the newest spread before the ledger has that spread, and that all earlier ones are
    /// sealed: a Redis that loses either would let somebody in who is in another place by then.
    ///
    /// # Errors
    /// [`SpreadError`] when a shard, or the ledger, gives no answer until `deadline`; doing it again is safe.
    pub async fn share_settings(
        &self,
        home: &Namespace,
        settings: &Settings,
        deadline: Instant,
    ) -> Result<(), SpreadError> {
        if !settings.is_spread() {
            return Ok(());
        }
        self.until_ledger_has(home, deadline, |known| {
            (known.spread, &known.layouts) == (settings.spread, &settings.layouts)
        })
        .await?;
        let shards = settings.parts(home).split_off(1);
        let is_newest =
            |shard: &&Namespace| shard.shard_number().is_some_and(|(_, of)| of == settings.spread);
        let (newest, earlier): (Vec<_>, Vec<_>) = shards.iter().partition(is_newest);
        let copy = |shard: &Namespace| {
            let copy = CopyNamespace { shard: shard.clone(), settings: settings.clone() };
            async move { copy.run(&self.inner.gate).await }
        };
        try_join_all(earlier.iter().map(|shard| copy(shard))).await?;
        for shard in earlier {
            self.until_ledger_has(shard, deadline, |known| known.sealed).await?;
        }
        try_join_all(newest.iter().map(|shard| copy(shard))).await?;
        Ok(())
    }

    /// Waits until the ledger has the rules of a namespace, or of a shard, as they are wanted.
    async fn until_ledger_has(
        &self,
        namespace: &Namespace,
        deadline: Instant,
        is_so: impl Fn(&Settings) -> bool,
    ) -> Result<(), SpreadError> {
        let Inner { gate, ledger, progress, .. } = &*self.inner;
        let partition = gate.keys().partition_of(namespace);
        while !ledger.namespace(namespace).await?.is_some_and(|known| is_so(&known)) {
            if Instant::now() >= deadline {
                return Err(SpreadError::TooLate);
            }
            // Somebody waits, so the sync does not gather more.
            let next = progress.cursor(partition).next();
            let more = progress.wait(Position { partition, cursor: next });
            drop(tokio::time::timeout(PAUSE, more).await);
        }
        Ok(())
    }

    /// Brings what a code stands for into a shard that does not know it; says whether there is anything.
    pub(super) async fn copy_code(
        &self,
        home: &Namespace,
        shard: &Namespace,
        code: &Code,
    ) -> Result<bool, SpreadError> {
        let which = Which::Code(code.clone());
        let question = ShowInvite { namespace: home.clone(), which };
        let Some(Shown { invite, .. }) = question.run(&self.inner.gate).await? else {
            return Ok(false);
        };
        if invite.total.is_none() {
            // It was made before its namespace was spread: a look gives it its total, before any shard has it.
            let parts = [home.clone()];
            let pool = Pool::Invite { id: invite.id, code: code.clone() };
            self.give(&Moving { parts: &parts, pool }, HOME, HOME, 0, 0).await?;
        }
        self.copy(home, shard, invite, true).await?;
        Ok(true)
    }

    async fn copy(
        &self,
        home: &Namespace,
        shard: &Namespace,
        invite: Invite,
        is_current: bool,
    ) -> Result<(), SpreadError> {
        let copy = CopyInvite { shard: shard.clone(), invite, is_current };
        // A shard that is missing is made once.
        if copy.run(&self.inner.gate).await? == Copied::NoShard
            && self.make_shard(home, shard).await?
        {
            copy.run(&self.inner.gate).await?;
        }
        Ok(())
    }

    /// Brings an invite, as its home has it, to all shards. What is answered after that holds everywhere.
    ///
    /// # Errors
    /// [`SpreadError`] when a shard gives no answer; doing it again is safe.
    pub async fn share(&self, invite: &Invite) -> Result<(), SpreadError> {
        if invite.total.is_none() {
            return Ok(());
        }
        let home = &invite.namespace;
        let which = Which::Code(invite.code.clone());
        let current = ShowInvite { namespace: home.clone(), which }.run(&self.inner.gate).await?;
        let is_current = current.is_some_and(|current| current.invite.id == invite.id);
        let parts = self.parts(home).await?;
        let shards = parts[1..].iter();
        let copies = shards.map(|shard| self.copy(home, shard, invite.clone(), is_current));
        try_join_all(copies).await?;
        Ok(())
    }
}
