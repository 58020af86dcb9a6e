//! Whom a request speaks for, and where: the key that opened it, and the namespace in its path.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, web};

use super::{
    State,
    problem::{Code, Problem},
};
use crate::{
    domain::{ApiKey, Namespace},
    gate::GateError,
    ledger::By,
};

/// The key that opened a request, and the request's id; the guard has put it there.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) Arc<ApiKey>, pub(super) String);

impl Caller {
    /// What gate and ledger note as the one who did it.
    pub(super) fn actor(&self) -> String {
        self.0.id.clone()
    }

    /// What the ledger notes of a change of its own tables.
    pub(super) fn by(&self) -> By {
        By { actor: self.actor(), request_id: Some(self.1.clone()) }
    }

    fn of(request: &HttpRequest) -> Result<Self, Problem> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| {
            Problem::new(Code::Unauthorized, "Send Authorization: Bearer <API key>.")
        })
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}

/// A namespace that the caller's key covers.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) namespace: Namespace,
    pub(super) caller: Caller,
}

impl Scope {
    fn of(request: &HttpRequest) -> Result<Self, Problem> {
        let caller = Caller::of(request)?;
        let namespace = Namespace::parse(request.match_info().query("ns")).map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("In the path, {error}."))
        })?;
        if !caller.0.covers(&namespace) {
            return Err(Problem::new(Code::Forbidden, "This API key is tied to other namespaces."));
        }
        Ok(Self { namespace, caller })
    }
}

impl FromRequest for Scope {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}

/// There is room in the namespace's lane. Extracted before the body, so that in a rush a refusal costs little and what
/// can be served is served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room;

impl FromRequest for Room {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let state = request.app_data::<web::Data<State>>();
        let namespace = Namespace::parse(request.match_info().query("ns"));
        let is_full =
            state.zip(namespace.ok()).is_some_and(|(state, ns)| state.gate.is_overloaded(&ns));
        ready(if is_full { Err(GateError::Overloaded.into()) } else { Ok(Self) })
    }
}
