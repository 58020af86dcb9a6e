//! Reading what a script said. Every reply is an array that begins with a word; anything else is an error.

use redis::Value;

use super::{GateError, fields::Fields, script::Script};

/// The values of a reply, read from front to back.
pub(super) struct Reply<'a> {
    script: &'static Script,
    values: std::slice::Iter<'a, Value>,
}

impl<'a> Reply<'a> {
    /// A reply of `script`: an array.
    pub(super) fn new(script: &'static Script, value: &'a Value) -> Result<Self, GateError> {
        match value {
            Value::Array(values) => Ok(Self { script, values: values.iter() }),
            other => Err(unexpected(script, format!("{other:?} instead of an array"))),
        }
    }

    /// How many values are left.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// The next value as it is.
    pub(super) fn value(&mut self) -> Result<&'a Value, GateError> {
        self.values.next().ok_or_else(|| unexpected(self.script, "its reply is too short"))
    }

    /// The next value as an array within this one.
    pub(super) fn array(&mut self) -> Result<Reply<'a>, GateError> {
        let script = self.script;
        Reply::new(script, self.value()?)
    }

    /// The next value as text.
    pub(super) fn text(&mut self) -> Result<&'a str, GateError> {
        let script = self.script;
        match self.value()? {
            Value::BulkString(bytes) => {
                std::str::from_utf8(bytes).map_err(|_| unexpected(script, "text that is not UTF-8"))
            }
            Value::SimpleString(text) => Ok(text),
            Value::Okay => Ok("OK"),
            other => Err(unexpected(script, format!("{other:?} instead of text"))),
        }
    }

    /// The next value as a whole number, be it a number or its text.
    pub(super) fn number<T: TryFrom<i64> + std::str::FromStr>(&mut self) -> Result<T, GateError> {
        let script = self.script;
        let value = self.value()?;
        let number = match value {
            Value::Int(number) => T::try_from(*number).ok(),
            Value::BulkString(bytes) => {
                std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        };
        number.ok_or_else(|| unexpected(script, format!("{value:?} instead of a number")))
    }

    /// The next value as a whole number, or nothing for an empty text.
    pub(super) fn optional_number<T: TryFrom<i64> + std::str::FromStr>(
        &mut self,
    ) -> Result<Option<T>, GateError> {
        if matches!(self.values.as_slice().first(), Some(Value::BulkString(text)) if text.is_empty())
        {
            self.values.next();
            return Ok(None);
        }
        self.number().map(Some)
    }

    /// The next value as something that is made from a whole number.
    pub(super) fn parsed_number<T, E: std::fmt::Display>(
        &mut self,
        parse: impl FnOnce(i64) -> Result<T, E>,
    ) -> Result<T, GateError> {
        let script = self.script;
        let number = self.number()?;
        parse(number).map_err(|error| unexpected(script, format!("{number}: {error}")))
    }

    /// The next value, an array, as field and value in turn.
    pub(super) fn fields(&mut self) -> Result<Fields, GateError> {
        let script = self.script;
        match self.value()? {
            Value::Array(values) => {
                Fields::from_flat(values).map_err(|error| unexpected(script, error.0))
            }
            other => Err(unexpected(script, format!("{other:?} instead of fields"))),
        }
    }

    /// The next value as something that is parsed from text.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &mut self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, GateError> {
        let script = self.script;
        let text = self.text()?;
        parse(text).map_err(|error| unexpected(script, format!("{text:?}: {error}")))
    }

    /// Like [`Reply::parsed`], with nothing for an empty text.
    pub(super) fn optional<T, E: std::fmt::Display>(
        &mut self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, GateError> {
        let script = self.script;
        match self.text()? {
            "" => Ok(None),
            text => parse(text)
                .map(Some)
                .map_err(|error| unexpected(script, format!("{text:?}: {error}"))),
        }
    }

    /// An error that says this reply is not one that the program knows.
    pub(super) fn unknown(&self, what: &str) -> GateError {
        unexpected(self.script, format!("{what:?}, which is not one of its replies"))
    }
}

/// Whether a reply is `{'fenced'}`.
pub(super) fn is_fenced(value: &Value) -> bool {
    let Value::Array(values) = value else { return false };
    matches!(values.first(), Some(Value::BulkString(word)) if word == b"fenced")
}

fn unexpected(script: &'static Script, message: impl Into<String>) -> GateError {
    GateError::Unexpected { script: script.name, message: message.into() }
}
