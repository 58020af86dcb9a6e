//! The scripts, each declared once, and how one is called.

use std::{sync::LazyLock, time::Duration};

use redis::{ErrorKind, RedisResult, ServerErrorKind, Value, aio::MultiplexedConnection};

use crate::{domain::Fence, trace};

/// One file under `lua/`.
pub struct Script {
    /// The file's name without `.lua`.
    pub name: &'static str,
    /// Its text, which is what Redis runs.
    pub source: &'static str,
    sha1: LazyLock<String>,
}

/// Declares each script once, and `ALL` of them.
macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(
            #[doc = concat!("`lua/", $file, ".lua`")]
            pub static $name: Script = Script {
                name: $file,
                source: include_str!(concat!("../../lua/", $file, ".lua")),
                sha1: LazyLock::new(|| redis::Script::new($name.source).get_hash().to_owned()),
            };
        )*

        /// Every script.
        pub static ALL: &[&Script] = &[$(&$name),*];
    };
}

scripts! {
    REDEEM = "redeem",
    CREATE_INVITE = "create_invite",
    CREATE_BATCH = "create_batch",
    IMPORT_INVITES = "import_invites",
    IMPORT_MEMBERS = "import_members",
    CHANGE_INVITE = "change_invite",
    DELETE_INVITE = "delete_invite",
    COPY_INVITE = "copy_invite",
    GIVE_USES = "give_uses",
    TAKE_USES = "take_uses",
    FIND_CODE = "find_code",
    SHOW_INVITE = "show_invite",
    JOIN = "join",
    LEAVE = "leave",
    ERASE_USER = "erase_user",
    SHOW_MEMBER = "show_member",
    ROLLBACK = "rollback",
    RELEASE = "release",
    SHOW_REDEMPTION = "show_redemption",
    SHOW_RESERVATION = "show_reservation",
    PUT_CAMPAIGN = "put_campaign",
    SHOW_CAMPAIGN = "show_campaign",
    PUT_NAMESPACE = "put_namespace",
    COPY_NAMESPACE = "copy_namespace",
    SHOW_NAMESPACE = "show_namespace",
    AUDIT = "audit",
    REPAIR = "repair",
    SURVEY = "survey",
    CLOSE = "close",
    ADOPT = "adopt",
    REBUILD = "rebuild",
}

/// How many replicas are to have a call, and how long that is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// At least 1.
    pub replicas: u32,
    /// Shorter than the wait for the whole reply.
    pub timeout: Duration,
}

/// A script with its keys and values, ready to be sent any number of times.
#[derive(Debug)]
pub struct Call {
    script: &'static Script,
    keys: Vec<String>,
    args: Vec<String>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Call {
    /// A call of a script that has no fence; `args` are all its values.
    #[must_use]
    pub fn new(script: &'static Script, keys: Vec<String>, args: Vec<String>) -> Self {
        Self { script, keys, args }
    }

    /// A call of a fenced script; `args` are the values after the head's four.
    #[must_use]
    pub fn fenced(
        script: &'static Script,
        fence: &Fence,
        now_ms: Option<i64>,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Self {
        let now = now_ms.map(|now| now.to_string()).unwrap_or_default();
        let head = [fence.deployment.clone(), fence.lineage.clone(), fence.epoch.to_string(), now];
        Self { script, keys, args: head.into_iter().chain(args).collect() }
    }

    /// Which script this is.
    #[must_use]
    pub fn script(&self) -> &'static Script {
        self.script
    }

    /// Its keys and values.
    #[must_use]
    pub fn into_words(self) -> (Vec<String>, Vec<String>) {
        (self.keys, self.args)
    }

    /// Sends the call and waits for its reply.
    ///
    /// A server that does not know the script yet is sent its text, which it keeps as it runs it; loading it apart
    /// would be another command that can fail.
    ///
    /// # Errors
    /// Whatever Redis or the connection to it says. A time-out or a lost connection tells nothing about what the
    /// script did.
    pub async fn send(&self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        trace::around(trace::redis(self.script.name), async {
            match self.command("EVALSHA", &self.script.sha1).query_async(connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.command("EVAL", self.script.source).query_async(connection).await
                }
                reply => reply,
            }
        })
        .await
    }

    /// Sends the call and, right behind it on the same connection, WAIT: on another one it would answer for writes that
    /// it never saw. Returns the reply and how many replicas have everything up to this call, if it has written something.
    ///
    /// # Errors
    /// As [`Self::send`]. A WAIT that fails says that no replica has it.
    pub async fn send_and_wait(
        &self,
        connection: &mut MultiplexedConnection,
        wait: Wait,
    ) -> RedisResult<(Value, u32)> {
        trace::around(trace::redis(self.script.name), async {
            match self.pipeline("EVALSHA", &self.script.sha1, wait, connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.pipeline("EVAL", self.script.source, wait, connection).await
                }
                reply => reply,
            }
        })
        .await
    }

    async fn pipeline(
        &self,
        name: &str,
        script: &str,
        wait: Wait,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<(Value, u32)> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(self.command(name, script));
        let millis = wait.timeout.as_millis().to_string();
        pipeline.cmd("WAIT").arg(wait.replicas).arg(millis).ignore_errors();
        let (reply, acknowledged): (RedisResult<Value>, RedisResult<u32>) =
            pipeline.query_async(connection).await?;
        Ok((reply?, acknowledged.unwrap_or_default()))
    }

    fn command(&self, name: &str, script: &str) -> redis::Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        command
    }
}
