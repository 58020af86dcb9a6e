//! Request bodies: closed JSON objects, of which every bad field is reported at once.

use std::{collections::HashSet, fmt, future::Future, net::IpAddr, pin::Pin};

use actix_web::{FromRequest, HttpRequest, dev::Payload, http::header, web};
use futures_util::StreamExt;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Value, json, value::RawValue};

use super::{
    State,
    problem::{Code, Problem},
};
use crate::domain::{Malformed, Millis, invite::METADATA_BYTES_MAX};

/// Most fields of an object; no request knows half as many.
const FIELDS_MAX: usize = 64;

/// The fields of a body, or the parameters of a query string, taken out one by one.
#[derive(Debug, Default)]
pub(super) struct Body {
    fields: Vec<(String, Value)>,
    errors: Vec<Value>,
    /// What all errors so far have in common.
    common: Option<Code>,
}

/// The parsed object; a name that comes twice is an error, since nobody can know which one was meant.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::with_capacity(8);
                while let Some((name, value)) = map.next_entry()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom(format!("more than {FIELDS_MAX} fields")));
                    }
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format!("field {name:?} comes twice")));
                    }
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl FromRequest for Body {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let json = ["application/json", "application/merge-patch+json"];
        let bytes =
            received(request, payload, &json, "Send JSON with Content-Type: application/json.");
        Box::pin(async move { Self::parse(&bytes.await?) })
    }
}

/// The fields of a form.
pub(super) struct Form(pub(super) Body);

impl FromRequest for Form {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let form = ["application/x-www-form-urlencoded"];
        let bytes = received(
            request,
            payload,
            &form,
            "Send a form with Content-Type: application/x-www-form-urlencoded.",
        );
        Box::pin(async move {
            let bytes = bytes.await?;
            let text = std::str::from_utf8(&bytes).unwrap_or("%");
            let pairs = web::Query::<Vec<(String, String)>>::from_query(text).map_err(|error| {
                Problem::new(Code::InvalidRequest, format!("The form can not be read: {error}."))
            })?;
            Ok(Self(Body::from_pairs(&pairs)?))
        })
    }
}

/// A body of one of these types, once all of it has come.
fn received(
    request: &HttpRequest,
    payload: &mut Payload,
    types: &[&str],
    otherwise: &'static str,
) -> impl Future<Output = Result<Vec<u8>, Problem>> + use<> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let media_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let is_known = types.iter().any(|known| media_type.eq_ignore_ascii_case(known));
    let mut payload = payload.take();
    async move {
        let Some(state) = state else {
            return Err(Problem::new(Code::Internal, "The service is not set up."));
        };
        if !is_known {
            return Err(Problem::new(Code::UnsupportedMediaType, otherwise));
        }
        let reading = read(&mut payload, state.body_bytes_max);
        tokio::time::timeout(state.request_timeout, reading).await.map_err(|_| {
            Problem::new(
                Code::RequestTimeout,
                "The body did not arrive in time. Send it again at once.",
            )
        })?
    }
}

async fn read(payload: &mut Payload, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("The body could not be read: {error}."))
        })?;
        if bytes.len() + chunk.len() > bytes_max {
            return Err(Problem::new(
                Code::BodyTooLarge,
                format!("A body has at most {bytes_max} bytes."),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

impl Body {
    /// A JSON object.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let object: Object = serde_json::from_slice(bytes).map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("The body is not a JSON object: {error}."))
        })?;
        Ok(Self { fields: object.0, ..Self::default() })
    }

    /// The parameters of a query string.
    pub(super) fn from_pairs(pairs: &[(String, String)]) -> Result<Self, Problem> {
        let text = |(name, value): &(String, String)| (name.clone(), Value::String(value.clone()));
        Self::of(pairs.iter().map(text).collect())
    }

    /// Fields with these names.
    pub(super) fn of(fields: Vec<(String, Value)>) -> Result<Self, Problem> {
        let mut names = HashSet::new();
        for (name, _) in &fields {
            if !names.insert(name) {
                return Err(Problem::new(
                    Code::InvalidRequest,
                    format!("The parameter {name:?} comes twice."),
                ));
            }
        }
        Ok(Self { fields, ..Self::default() })
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let place = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.swap_remove(place).1)
    }

    /// Notes that a field is wrong.
    pub(super) fn wrong(&mut self, name: &str, code: Code, detail: &str) {
        // One kind of error among all fields is told as that kind, several as the general one.
        self.common = match self.common {
            None => Some(code),
            Some(common) if common == code => Some(code),
            Some(_) => Some(Code::InvalidRequest),
        };
        self.errors
            .push(json!({"pointer": format!("/{name}"), "code": code.as_str(), "detail": detail}));
    }

    /// A field that must be there, as text that `parse` accepts.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Malformed>,
    ) -> Option<T> {
        let parsed = self.optional(name, parse);
        if matches!(parsed, Presence::Absent | Presence::Null) {
            self.wrong(name, Code::InvalidRequest, "is needed");
        }
        parsed.value()
    }

    /// A field that may be absent, as text that `parse` accepts.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Malformed>,
    ) -> Presence<T> {
        self.typed(name, |value| match value {
            Value::String(text) => parse(&text).map_err(|error| error.0),
            _ => Err("must be a string".to_owned()),
        })
    }

    /// A code that must be there.
    pub(super) fn code<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Result<T, Malformed>,
    ) -> Option<T> {
        let code = self.optional_code(parse);
        if matches!(code, Presence::Absent | Presence::Null) {
            self.wrong("code", Code::InvalidRequest, "is needed");
        }
        code.value()
    }

    /// A code that may be absent.
    pub(super) fn optional_code<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Result<T, Malformed>,
    ) -> Presence<T> {
        let text = match self.take("code") {
            None => return Presence::Absent,
            Some(Value::Null) => return Presence::Null,
            Some(Value::String(text)) => text,
            Some(_) => {
                self.wrong("code", Code::InvalidRequest, "must be a string");
                return Presence::Wrong;
            }
        };
        match parse(&text) {
            Ok(code) => Presence::Value(code),
            Err(error) => {
                self.wrong("code", Code::CodeMalformed, &error.0);
                Presence::Wrong
            }
        }
    }

    /// A field that may be absent, as whatever `read` accepts.
    pub(super) fn typed<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Presence<T> {
        match self.take(name) {
            None => Presence::Absent,
            Some(Value::Null) => Presence::Null,
            Some(value) => match read(value) {
                Ok(value) => Presence::Value(value),
                Err(detail) => {
                    self.wrong(name, Code::InvalidRequest, &detail);
                    Presence::Wrong
                }
            },
        }
    }

    /// Notes each of these fields that is there, whatever it is.
    pub(super) fn refuse(&mut self, names: &[&str], detail: &str) {
        for name in names {
            if self.take(name).is_some() {
                self.wrong(name, Code::InvalidRequest, detail);
            }
        }
    }

    /// Notes each of these fields that is null: a patch can not remove what always has a value.
    pub(super) fn refuse_null(&mut self, names: &[&str]) {
        for name in names {
            if self.fields.iter().any(|(field, value)| field == name && value.is_null()) {
                self.refuse(&[name], "can not be null");
            }
        }
    }

    /// A moment.
    pub(super) fn time(&mut self, name: &str) -> Presence<Millis> {
        self.optional(name, Millis::parse)
    }

    /// A whole number of at least 1 and at most `max`.
    pub(super) fn count(&mut self, name: &str, max: u64) -> Presence<u64> {
        self.typed(name, |value| {
            let number = whole(&value).filter(|number| (1..=max).contains(number));
            number.ok_or_else(|| format!("must be a whole number from 1 to {max}"))
        })
    }

    /// The application's own JSON object, as text.
    pub(super) fn metadata(&mut self) -> Presence<String> {
        self.typed("metadata", |value| {
            let text = value.to_string();
            if value.is_object() && text.len() <= METADATA_BYTES_MAX {
                Ok(text)
            } else {
                Err(format!("must be a JSON object of at most {METADATA_BYTES_MAX} bytes"))
            }
        })
    }

    /// A value of the path.
    pub(super) fn checked<T>(&mut self, name: &str, parsed: Result<T, Malformed>) -> Option<T> {
        parsed.map_err(|error| self.wrong(name, Code::InvalidRequest, &error.0)).ok()
    }

    /// The person's address.
    pub(super) fn ip(&mut self) -> Option<IpAddr> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Malformed("must be an IP address, version 4 or 6".to_owned()))
        };
        self.optional("ip", parse).value()
    }

    /// Notes every field that nobody took.
    ///
    /// # Errors
    /// Everything that was wrong, if anything was.
    pub(super) fn finish(&mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.fields) {
            self.wrong(&name, Code::InvalidRequest, "is not a field of this request");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.problem()) }
    }

    /// Everything that was wrong.
    pub(super) fn problem(&mut self) -> Problem {
        let code = self.common.unwrap_or(Code::InvalidRequest);
        let detail = match code {
            Code::CodeMalformed => {
                "This can not be a code here; `errors` says why. Ask for it again."
            }
            Code::DurabilityUnavailable => {
                "This service promises the durability levels gate and ledger; for replicated, the operator sets gate.replicas."
            }
            _ => "Mend the fields listed in `errors` and send the request again.",
        };
        Problem::new(code, detail).with("errors", std::mem::take(&mut self.errors))
    }
}

/// The application's own JSON object, as it is kept, to be written out again.
pub(super) fn stored_metadata(text: Option<String>) -> Result<Option<Box<RawValue>>, Problem> {
    text.map(RawValue::from_string)
        .transpose()
        .map_err(|error| Problem::internal("stored metadata is not JSON", &error))
}

/// A whole number, also one that is written with a fraction of nothing: to JSON Schema, 5.0 is an integer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "only what is whole and below 2^53 is cast"
)]
fn whole(value: &Value) -> Option<u64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..EXACT_MAX).contains(number);
    value.as_u64().or_else(|| value.as_f64().filter(is_whole).map(|number| number as u64))
}

/// What a body has of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence<T> {
    Absent,
    Null,
    /// It was there and wrong, which has been noted.
    Wrong,
    Value(T),
}

impl<T> Presence<T> {
    /// The value, if there is one.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null | Self::Wrong => None,
        }
    }

    /// As a change: nothing leaves the field alone, `Some(None)` removes it.
    pub(super) fn patch(self) -> Option<Option<T>> {
        match self {
            Self::Value(value) => Some(Some(value)),
            Self::Null => Some(None),
            Self::Absent | Self::Wrong => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CodeCase, UserId};

    fn body(text: &str) -> Body {
        Body::parse(text.as_bytes()).unwrap()
    }

    fn pointers(problem: &Problem) -> Vec<String> {
        let response = problem.response("/", "id");
        let bytes = actix_web::body::MessageBody::try_into_bytes(response.into_body()).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        value["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn every_bad_field_is_told_at_once() {
        let mut body = body(r#"{"code": 5, "user": "", "ttl": 1, "max_uses": 0}"#);
        body.code(|text| crate::domain::Code::parse(text, CodeCase::Insensitive));
        body.required("user", UserId::parse);
        body.required("group", UserId::parse);
        body.count("max_uses", 10);
        let problem = body.finish().unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest);
        assert_eq!(pointers(&problem), ["/code", "/user", "/group", "/max_uses", "/ttl"]);
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_nothing() {
        let mut body = body(r#"{"a": 5.0, "b": 5e0, "c": 5.5, "d": -0.0, "e": 1e300}"#);
        assert_eq!(body.count("a", 10), Presence::Value(5));
        assert_eq!(body.count("b", 10), Presence::Value(5));
        for wrong in ["c", "d", "e"] {
            assert_eq!(body.count(wrong, 10), Presence::Wrong, "{wrong}");
        }
    }

    #[test]
    fn a_malformed_code_alone_has_a_code_of_its_own() {
        let mut body = body(r#"{"code": "a b"}"#);
        body.code(|text| crate::domain::Code::parse(text, CodeCase::Insensitive));
        assert_eq!(body.finish().unwrap_err().code, Code::CodeMalformed);
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for bad in [
            "",
            "[]",
            "1",
            "null",
            "{",
            r#"{"a":1,"a":2}"#,
            "{} {}",
            "{\"a\":\"\u{0}\"}",
            r#"{"a":1e999}"#,
            &format!("{{{}}}", (0..65).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",")),
        ] {
            assert_eq!(
                Body::parse(bad.as_bytes()).unwrap_err().code,
                Code::InvalidRequest,
                "{bad:?}"
            );
        }
        assert!(Body::parse(b"{\"a\":\"\xff\"}").is_err());
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(Body::parse(deep.as_bytes()).is_err());
    }
}
