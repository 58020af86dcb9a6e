//! What the words mean: pure values and rules, without I/O.
//!
//! Nothing here reads a clock, draws a random number, or knows that Redis, SQL or HTTP exist; times and ids are
//! arguments. Text that comes from outside becomes one of these types by `parse`, once, at the edge; code that holds a
//! [`Code`] or a [`UserId`] never checks it again.
//!
//! [`model`] is the whole gate in pure Rust: the oracle that the scripts are tested against, and the shortest
//! description of what they mean.

pub mod api_key;
pub mod batch;
pub mod campaign;
pub mod change;
pub mod check;
pub mod code;
pub mod command;
pub mod event;
pub mod id;
pub mod invite;
pub mod member;
pub mod model;
pub mod name;
pub mod partition;
pub mod pattern;
pub mod rate_limit;
pub mod redemption;
pub mod reservation;
pub mod settings;
pub mod spread;
pub mod time;
pub mod user_token;
pub mod webhook;

pub use api_key::{ApiKey, Role, Token};
pub use batch::{Batch, BatchOrder, BatchState};
pub use campaign::Campaign;
pub use change::{Change, Entry, Moves};
pub use code::{Code, CodeCase};
pub use event::Event;
pub use id::{BatchId, DeliveryId, InviteId, RedemptionId, RequestId, ReservationId, WebhookId};
pub use invite::{Invite, InviteState};
pub use member::{Member, MembershipRule};
pub use name::{CampaignName, EmailDomain, Group, Malformed, Namespace, UserId};
pub use partition::{Cursor, Fence, Partition, Position, Positions};
pub use pattern::{Alphabet, Codes, Pattern};
pub use rate_limit::{Policy, Quota, RateStatus};
pub use redemption::{Acknowledgement, Answer, Outcome, Redemption, Refusal};
pub use reservation::Reservation;
pub use settings::{Durability, ErrorDetail, Settings};
pub use spread::Given;
pub use time::Millis;
pub use user_token::UserToken;
pub use webhook::{Delivery, DeliveryState, Webhook};
