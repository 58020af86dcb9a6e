//! A gate and a ledger in this process, with a clock that the test sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use redeemer::{
    domain::{
        CodeCase, Cursor, Durability, ErrorDetail, MembershipRule, Millis, Namespace, Partition,
    },
    gate::{
        Gate, GateOptions,
        outbox::Reader,
        put_namespace::{Action, PutNamespace, Rules},
        topology::{Tls, Topology},
    },
    ledger::{Deployment, Lease, Ledger},
    recovery::{self, Admission},
    sync::{Context, SyncOptions, progress::Progress},
};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::{ledger, redis::RedisServer};

/// The moment at which every test's clock begins.
pub const START: i64 = 1_764_000_000_000;

/// One open partition.
pub struct Bench {
    pub redis: RedisServer,
    pub gate: Gate,
    pub ledger: Ledger,
    pub deployment: Deployment,
    pub lease: Lease,
    pub clock: Arc<AtomicI64>,
    /// The latest that the clock has ever been.
    latest: AtomicI64,
    directory: TempDir,
}

pub fn gate_options(url: &str, clock: Option<Arc<AtomicI64>>) -> GateOptions {
    GateOptions {
        topology: Topology::parse(url, &Tls::default()).unwrap(),
        key_prefix: "rdm".to_owned(),
        partitions: 1,
        connect_timeout: Duration::from_secs(5),
        reply_timeout: Duration::from_secs(5),
        pool_size: 4,
        connections: 1,
        batch_max: 64,
        queue_max: 10_000,
        replicas: 0,
        deadline: Duration::from_secs(10),
        outbox_max: 1_000_000,
        clock_ms: clock,
    }
}

pub async fn open_ledger(directory: &TempDir) -> Ledger {
    ledger::open(&ledger::url_in(directory.path())).await
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With other options of the gate.
    pub async fn start_with(change: impl FnOnce(&mut GateOptions)) -> Self {
        let redis = RedisServer::start().await;
        let clock = Arc::new(AtomicI64::new(START));
        let mut options = gate_options(&redis.url(), Some(clock.clone()));
        change(&mut options);
        let (gate, lanes) = Gate::new(options).unwrap();
        tokio::spawn(lanes);
        let directory = tempfile::tempdir().unwrap();
        let ledger = open_ledger(&directory).await;
        let deployment = ledger.deployment(1, uuid::Uuid::from_u128(1)).await.unwrap();
        let lease =
            ledger.take_leases("test", Duration::from_mins(10), true).await.unwrap().remove(0);
        let latest = AtomicI64::new(START);
        let bench = Self { redis, gate, ledger, deployment, lease, clock, latest, directory };
        bench.admit().await;
        bench
    }

    /// Opens the partition, as its leader would.
    pub async fn admit(&self) {
        let admitted = self.try_admit().await;
        let Admission::Open(fence, _) = admitted else { panic!("{admitted:?}") };
        self.gate.set_fence(Partition(0), Some(fence));
    }

    pub async fn try_admit(&self) -> Admission {
        admit(&self.gate, &self.ledger, &self.deployment, &self.lease).await
    }

    /// What a node needs to look after the partition, with leases of this length.
    pub fn context(&self, lease_ttl: Duration) -> Context {
        context(&self.gate, &self.ledger, &self.deployment, lease_ttl)
    }

    pub fn ledger_url(&self) -> String {
        ledger::url_in(self.directory.path())
    }

    pub fn now(&self) -> Millis {
        Millis::from_ms(self.clock.load(Ordering::SeqCst)).unwrap()
    }

    pub fn advance(&self, ms: i64) {
        let now = self.clock.fetch_add(ms, Ordering::SeqCst) + ms;
        self.latest.fetch_max(now, Ordering::SeqCst);
    }

    /// The latest that the clock has ever been.
    pub fn latest_ms(&self) -> i64 {
        self.latest.load(Ordering::SeqCst)
    }

    /// Empties the outbox up to here, as the sync does.
    pub async fn trim(&self, cursor: Cursor) {
        let reader = Reader::connect(&self.gate, Partition(0), Duration::ZERO).await;
        reader.unwrap().trim(cursor).await.unwrap();
    }

    /// Makes a namespace without rate limits.
    pub async fn namespace(&self, name: &str, membership: MembershipRule) -> Namespace {
        let namespace = Namespace::parse(name).unwrap();
        let put = PutNamespace {
            namespace: namespace.clone(),
            action: Action::Put(rules(membership)),
            change: uuid::Uuid::from_u128(7),
            expected_revision: None,
            actor: "test".to_owned(),
        };
        put.run(&self.gate).await.unwrap();
        namespace
    }
}

/// What the leader of a partition does first.
pub async fn admit(
    gate: &Gate,
    ledger: &Ledger,
    deployment: &Deployment,
    lease: &Lease,
) -> Admission {
    let context = context(gate, ledger, deployment, Duration::from_mins(10));
    recovery::admit(&context, lease, &AtomicBool::new(true)).await.unwrap()
}

fn context(gate: &Gate, ledger: &Ledger, deployment: &Deployment, lease_ttl: Duration) -> Context {
    Context {
        gate: gate.clone(),
        ledger: ledger.clone(),
        deployment: deployment.clone(),
        options: SyncOptions {
            owner: "test".to_owned(),
            batch_max: 1000,
            lease_ttl,
            steal_leases: false,
            gather: Duration::ZERO,
            block: Duration::from_millis(100),
            backoff_max: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(10),
        },
        rebuilds: Arc::new(Semaphore::new(1)),
        progress: Progress::new(1),
    }
}

pub fn rules(membership: MembershipRule) -> Rules {
    Rules {
        membership,
        code_case: CodeCase::Insensitive,
        code_check: false,
        durability: Durability::Gate,
        error_detail: ErrorDetail::Full,
        rate_user: None,
        rate_ip: None,
        rate_code: None,
        rate_namespace: None,
        rate_guess: None,
        spread: 1,
    }
}
