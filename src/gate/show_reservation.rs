//! `lua/show_reservation.lua`: the use of a code that is held for a user.

use super::{Gate, GateError, script::SHOW_RESERVATION};
use crate::domain::{Code, Millis, Namespace, Reservation, UserId};

/// The question.
#[derive(Debug, Clone)]
pub struct ShowReservation {
    /// Where.
    pub namespace: Namespace,
    /// Of what.
    pub code: Code,
    /// For whom.
    pub user: UserId,
}

impl ShowReservation {
    /// The user's live reservation, or nothing when there is none.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Option<Reservation>, GateError> {
        let Self { namespace, code, user } = self;
        let keys = gate.keys();
        let script_keys = vec![
            keys.settings(namespace),
            keys.invite(namespace, code),
            keys.held(namespace, code),
        ];
        let partition = keys.partition_of(namespace);
        let called =
            gate.call(partition, &SHOW_RESERVATION, script_keys, vec![user.to_string()]).await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "held" => {
                let invite = reply.parsed(str::parse)?;
                let until = reply.parsed_number(Millis::from_ms)?;
                Ok(Some(Reservation::new(namespace, invite, code, user, until)))
            }
            "not_held" => Ok(None),
            other => Err(reply.unknown(other)),
        }
    }
}
