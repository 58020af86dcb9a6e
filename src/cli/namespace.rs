//! `redeemer namespace create|list|show|change|archive`

use anyhow::bail;
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Common, invite::all, output::Column, parse_namespace};
use crate::{
    client::{Client, ClientError},
    domain::{CodeCase, Durability, MembershipRule, Namespace},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer namespace create acme --membership one_per_group --durability ledger
  redeemer namespace create rush --spread 3
  redeemer namespace change acme --rate-user 5/60 --rate-ip off
  redeemer namespace list --output csv
  redeemer namespace show acme
  redeemer namespace archive acme")]
pub(super) enum Command {
    /// Make a namespace, or bring an archived one back; what is left out gets its default
    Create {
        /// 1 to 63 characters of a-z, 0-9 and -
        #[arg(value_parser = parse_namespace)]
        name: Namespace,
        #[command(flatten)]
        fixed: Fixed,
        #[command(flatten)]
        rules: Rules,
    },
    /// List namespaces, archived ones too, as far as the ledger is
    List,
    /// Show the rules of a namespace as the gate has them
    Show {
        /// Which
        #[arg(value_parser = parse_namespace)]
        name: Namespace,
    },
    /// Change some rules of a namespace; what is left out stays
    Change {
        /// Which
        #[arg(value_parser = parse_namespace)]
        name: Namespace,
        #[command(flatten)]
        rules: Rules,
    },
    /// Let nobody redeem, join or change anything there any more; the ledger keeps all that it has
    Archive {
        /// Which
        #[arg(value_parser = parse_namespace)]
        name: Namespace,
    },
}

/// What can not be changed later.
#[derive(Debug, Args)]
pub(super) struct Fixed {
    /// How many groups a user may be in
    #[arg(long, value_name = "RULE", value_parser = words(MembershipRule::ALL.map(MembershipRule::as_str)))]
    membership: Option<String>,
    /// What is the same code
    #[arg(long, value_name = "CASE", value_parser = words(CodeCase::ALL.map(CodeCase::as_str)))]
    code_case: Option<String>,
    /// The last character of each code follows from the others
    #[arg(long)]
    code_check: bool,
}

/// What can.
#[derive(Debug, Args)]
pub(super) struct Rules {
    /// What answers promise at least
    #[arg(long, value_name = "LEVEL", value_parser = words(Durability::ALL.map(Durability::as_str)))]
    durability: Option<String>,
    /// Over how many partitions its users are spread
    #[arg(long, value_name = "N")]
    spread: Option<u16>,
    /// Attempts of one user, such as 10/60 (10 in 60 seconds), or off
    #[arg(long, value_name = "LIMIT")]
    rate_user: Option<String>,
    /// Attempts from one address
    #[arg(long, value_name = "LIMIT")]
    rate_ip: Option<String>,
    /// Attempts with one code
    #[arg(long, value_name = "LIMIT")]
    rate_code: Option<String>,
    /// All attempts together
    #[arg(long, value_name = "LIMIT")]
    rate_namespace: Option<String>,
    /// Codes that do not exist, tried from one address
    #[arg(long, value_name = "LIMIT")]
    rate_guess: Option<String>,
}

/// One of these words, which completions offer.
pub(super) fn words<const N: usize>(words: [&'static str; N]) -> PossibleValuesParser {
    PossibleValuesParser::new(words)
}

const COLUMNS: [Column; 13] = [
    ("NAME", "name"),
    ("MEMBERSHIP", "membership"),
    ("CODE CASE", "code_case"),
    ("CHECK", "code_check"),
    ("DURABILITY", "durability"),
    ("SPREAD", "spread"),
    ("USER", "rate_user"),
    ("IP", "rate_ip"),
    ("CODE", "rate_code"),
    ("ALL", "rate_namespace"),
    ("GUESS", "rate_guess"),
    ("CREATED", "created_at"),
    ("ARCHIVED", "archived_at"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let ask = async |method, name: &Namespace, body: Option<&Value>| {
            client.ask(method, &format!("/v1/namespaces/{name}"), body).await
        };
        match self {
            Self::Create { name, fixed, rules } => {
                if is_there(&client, &name).await? {
                    bail!("{name} is there already; `redeemer namespace change {name}` changes it");
                }
                let mut body = rules.body();
                let words = [("membership", fixed.membership), ("code_case", fixed.code_case)];
                for (field, word) in words {
                    body.extend(word.map(|word| (field.to_owned(), json!(word))));
                }
                if fixed.code_check {
                    body.insert("code_check".to_owned(), json!(true));
                }
                let made = ask(Method::PUT, &name, Some(&Value::Object(body))).await?;
                common.output.one(&COLUMNS, &made)
            }
            Self::List => common.output.rows(&COLUMNS, &all(&client, "/v1/namespaces", "").await?),
            Self::Show { name } => {
                common.output.one(&COLUMNS, &ask(Method::GET, &name, None).await?)
            }
            Self::Change { name, rules } => {
                let body = Value::Object(rules.body());
                common.output.one(&COLUMNS, &ask(Method::PATCH, &name, Some(&body)).await?)
            }
            Self::Archive { name } => {
                ask(Method::DELETE, &name, None).await?;
                let sentence = format!("Archived {name}.");
                common.output.done(&json!({"archived": name}), &sentence)
            }
        }
    }
}

/// Whether a namespace is there that was not archived: to make it again would set its rules back.
async fn is_there(client: &Client, name: &Namespace) -> Result<bool, ClientError> {
    match client.ask(Method::GET, &format!("/v1/namespaces/{name}"), None).await {
        Ok(known) => Ok(known["archived_at"].is_null()),
        Err(ClientError::Problem(problem)) if problem.code == "namespace_not_found" => Ok(false),
        Err(error) => Err(error),
    }
}

impl Rules {
    fn body(self) -> Map<String, Value> {
        let limits = [
            ("rate_user", self.rate_user),
            ("rate_ip", self.rate_ip),
            ("rate_code", self.rate_code),
            ("rate_namespace", self.rate_namespace),
            ("rate_guess", self.rate_guess),
        ];
        let limits = limits.into_iter().filter_map(|(field, limit)| {
            let limit = limit?;
            Some((field.to_owned(), if limit == "off" { Value::Null } else { json!(limit) }))
        });
        let durability = self.durability.map(|level| ("durability".to_owned(), json!(level)));
        let spread = self.spread.map(|spread| ("spread".to_owned(), json!(spread)));
        durability.into_iter().chain(spread).chain(limits).collect()
    }
}
