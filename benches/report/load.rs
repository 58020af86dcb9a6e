//! The load: HTTP/1.1 over connections that stay, from a loop over the system's poll.
//!
//! A request is a prepared text in which only the user, the address and the Idempotency-Key change; an answer is read as
//! far as its status and length. That is one write and one read for each, and little else: over 64 connections to the
//! echo, taking turns with `wrk -t1 -c64` on two cores, it got 4 to 14 % more answers (`report load ADDRESS` asks any
//! server like that).
//!
//! A closed loop asks again as soon as it has its answer, and finds out the most that a server can do. An open loop asks
//! at fixed moments whatever happens, as people do; its latencies count from the moment at which a request was due, also
//! when no connection was free then, or a slow server would hide its own slowness.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read, Write},
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};

/// The longest answer that is understood, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How long after its end a run waits for the answers that are still to come.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// How long it sleeps between two looks at the clock, while a request will soon be due.
const NAP: Duration = Duration::from_micros(100);
/// Connections that are made without a pause.
const CONNECTS_AT_ONCE: usize = 50;
const CONNECT_PAUSE: Duration = Duration::from_millis(2);

/// Numbers of requests: none comes twice, so that each is by another user.
static NUMBERS: AtomicU64 = AtomicU64::new(1);
/// How many a thread takes at a time.
const NUMBERS_AT_ONCE: u64 = 1 << 16;

/// What a user is called in a prepared request: 12 characters, of which 11 get replaced.
const USER: &str = "u00000000000";
/// 36 characters, of which the last 12 get replaced.
const KEY: &str = "01a20967-45a7-7482-bb99-000000000000";
/// An address, each in a network of its own, of which 9 characters get replaced.
const ADDRESS: &str = "2001:db8:0000:0000::1";

/// A request, the same but for who asks.
#[derive(Clone)]
pub(crate) struct Request {
    text: Vec<u8>,
    user_at: usize,
    key_at: usize,
    address_at: usize,
}

/// The body of a redemption, and what it is to promise.
pub(crate) fn redemption_body(code: &str, durability: Option<&str>) -> String {
    let durability =
        durability.map(|level| format!(r#","durability":"{level}""#)).unwrap_or_default();
    format!(r#"{{"code":"{code}","user":"{USER}","ip":"{ADDRESS}"{durability}}}"#)
}

impl Request {
    /// A POST with a body as [`redemption_body`] makes it.
    pub(crate) fn new(path: &str, api_key: &str, body: &str) -> anyhow::Result<Self> {
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api_key}\r\n\
             Content-Type: application/json\r\nIdempotency-Key: {KEY}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let find = |what: &str| text.find(what).with_context(|| format!("{what} is in no request"));
        let (user_at, key_at, address_at) = (find(USER)? + 1, find(KEY)? + 24, find(ADDRESS)? + 9);
        Ok(Self { text: text.into_bytes(), user_at, key_at, address_at })
    }

    /// Makes it the request of this number.
    fn number(&mut self, number: u64) {
        let digits = hexadecimal(number);
        self.text[self.user_at..self.user_at + 11].copy_from_slice(&digits[1..]);
        self.text[self.key_at..self.key_at + 12].copy_from_slice(&digits);
        self.text[self.address_at..self.address_at + 4].copy_from_slice(&digits[4..8]);
        self.text[self.address_at + 5..self.address_at + 9].copy_from_slice(&digits[8..]);
    }
}

/// The last twelve digits of a number.
pub(crate) fn hexadecimal(number: u64) -> [u8; 12] {
    let mut digits = [0; 12];
    let mut left = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[usize::from(left.to_le_bytes()[0] & 15)];
        left >>= 4;
    }
    digits
}

/// How to ask.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Each connection asks again once it has its answer.
    Closed,
    /// So many requests a second.
    Open(f64),
}

/// A run.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    /// Connections take them in turn.
    pub(crate) requests: &'a [Request],
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    /// What is not counted, before the rest.
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// What came of a run.
pub(crate) struct Report {
    /// Answers by status, with those of the warm-up and those that came late.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// The same, of requests that were due within the measured time.
    pub(crate) measured: BTreeMap<u16, u64>,
    /// Answers within the measured time, a second.
    pub(crate) rate: f64,
    /// Of those, the ones that granted something.
    pub(crate) granted_rate: f64,
    /// Latencies in microseconds of what was granted.
    latencies: Histogram<u64>,
    /// Answers of 503 with a Retry-After.
    pub(crate) told_to_wait: u64,
    /// Connections that broke.
    pub(crate) broken: u64,
    /// Requests without an answer.
    pub(crate) unanswered: u64,
    /// An answer that granted nothing, to tell what went wrong.
    pub(crate) refusal: Option<String>,
}

impl Report {
    /// All that was granted, the warm-up too.
    pub(crate) fn granted(&self) -> u64 {
        self.statuses
            .iter()
            .filter(|(status, _)| is_granted(**status))
            .map(|(_, count)| count)
            .sum()
    }

    /// A quantile of the latency of what was granted, in milliseconds.
    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        millis(self.latencies.value_at_quantile(quantile))
    }

    pub(crate) fn latency_ms_max(&self) -> f64 {
        millis(self.latencies.max())
    }

    /// Itself, if every request was granted: a figure of anything else says nothing.
    pub(crate) fn all_granted(self) -> anyhow::Result<Self> {
        let all: u64 = self.statuses.values().sum();
        anyhow::ensure!(
            all > 0 && all == self.granted() && self.broken == 0 && self.unanswered == 0,
            "not every request was granted: {:?}, {} connections broke, {} had no answer; {}",
            self.statuses,
            self.broken,
            self.unanswered,
            self.refusal.as_deref().unwrap_or_default(),
        );
        Ok(self)
    }

    /// Itself, if nothing was refused; what came late, or not yet, is among the latencies.
    pub(crate) fn none_refused(self) -> anyhow::Result<Self> {
        let refusal = self.refusal.as_deref().unwrap_or_default();
        anyhow::ensure!(self.refusal.is_none(), "{:?}: {refusal}", self.statuses);
        Ok(self)
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        for (sum, part) in
            [(&mut self.statuses, &other.statuses), (&mut self.measured, &other.measured)]
        {
            for (status, count) in part {
                *sum.entry(*status).or_default() += count;
            }
        }
        self.rate += other.rate;
        self.granted_rate += other.granted_rate;
        self.latencies.add(&other.latencies)?;
        self.told_to_wait += other.told_to_wait;
        self.broken += other.broken;
        self.unanswered += other.unanswered;
        if self.refusal.is_none() {
            self.refusal.clone_from(&other.refusal);
        }
        Ok(())
    }
}

fn is_granted(status: u16) -> bool {
    matches!(status, 200 | 201)
}

fn millis(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() * 1e3
}

impl Load<'_> {
    /// Asks, and waits until it is over.
    pub(crate) fn run(&self) -> anyhow::Result<Report> {
        // One thread keeps up with a few cores of server; more would take the server's own on a small machine.
        let threads = (thread::available_parallelism().map_or(1, usize::from) / 4).max(1);
        let share = Share { threads, connections: self.connections.div_ceil(threads) };
        let reports: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| Loop::new(self, share)?.run())).collect();
            running.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut sum: Option<Report> = None;
        for report in reports {
            let report = report.map_err(|_| anyhow::anyhow!("a thread of the load panicked"))??;
            match &mut sum {
                None => sum = Some(report),
                Some(sum) => sum.add(&report)?,
            }
        }
        sum.context("no thread ran")
    }
}

/// What one thread does of a run.
#[derive(Clone, Copy)]
struct Share {
    threads: usize,
    connections: usize,
}

struct Connection {
    stream: TcpStream,
    request: Request,
    answer: Vec<u8>,
    filled: usize,
    /// When the request that is under way was due.
    due: Option<Instant>,
}

/// An answer as far as it matters.
struct Answer {
    status: u16,
    retry_after: bool,
    closes: bool,
    bytes: usize,
}

/// One thread's part.
struct Loop<'a> {
    load: &'a Load<'a>,
    poll: Poll,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    /// When requests were due for which no connection is free yet.
    waiting: VecDeque<Instant>,
    numbers: std::ops::Range<u64>,
    /// Between two requests, in an open loop.
    interval: Option<Duration>,
    from: Instant,
    until: Instant,
    statuses: Box<[u64; 600]>,
    measured: Box<[u64; 600]>,
    answers: u64,
    granted: u64,
    report: Report,
}

impl<'a> Loop<'a> {
    fn new(load: &'a Load<'a>, share: Share) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(share.connections);
        for place in 0..share.connections {
            // Who asks for many at once finds the server's line for new ones full, and waits a second each time.
            if place % CONNECTS_AT_ONCE == CONNECTS_AT_ONCE - 1 {
                thread::sleep(CONNECT_PAUSE);
            }
            let stream = connect(load.address, place, &poll)?;
            let request = load.requests[place % load.requests.len()].clone();
            // Most answers are short; a longer one gets more room.
            let answer = vec![0; 2048];
            connections.push(Connection { stream, request, answer, filled: 0, due: None });
        }
        #[expect(clippy::cast_precision_loss, reason = "there are few threads")]
        let interval = match load.pace {
            Pace::Closed => None,
            Pace::Open(rate) => Some(Duration::from_secs_f64(share.threads as f64 / rate)),
        };
        let from = Instant::now() + load.warm_up;
        Ok(Self {
            load,
            poll,
            idle: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
            numbers: 0..0,
            interval,
            from,
            until: from + load.duration,
            statuses: Box::new([0; 600]),
            measured: Box::new([0; 600]),
            answers: 0,
            granted: 0,
            report: Report {
                statuses: BTreeMap::new(),
                measured: BTreeMap::new(),
                rate: 0.0,
                granted_rate: 0.0,
                latencies: Histogram::new_with_max(60_000_000, 3)?,
                told_to_wait: 0,
                broken: 0,
                unanswered: 0,
                refusal: None,
            },
        })
    }

    fn run(mut self) -> anyhow::Result<Report> {
        let mut events = Events::with_capacity(1024);
        let mut next_due = Instant::now();
        let mut now = next_due;
        loop {
            if let Some(interval) = self.interval {
                while next_due <= now && next_due < self.until {
                    self.waiting.push_back(next_due);
                    next_due += interval;
                }
                // Also once the time is over: whoever was due waits, and is counted.
                while let Some(due) = self.waiting.pop_front() {
                    let Some(place) = self.idle.pop_front() else {
                        self.waiting.push_front(due);
                        break;
                    };
                    self.ask(place, due)?;
                }
            } else if now < self.until {
                while let Some(place) = self.idle.pop_front() {
                    self.ask(place, now)?;
                }
            }
            let is_over = now >= self.until && self.idle.len() == self.connections.len();
            if is_over || now > self.until + LAST_ANSWERS {
                break;
            }
            let soon = self
                .interval
                .filter(|_| now < self.until)
                .map(|_| next_due.saturating_duration_since(Instant::now()));
            match soon {
                // The poll can only wait for whole milliseconds.
                Some(soon) if soon < Duration::from_millis(2) => {
                    self.poll.poll(&mut events, Some(Duration::ZERO))?;
                    if events.is_empty() {
                        thread::sleep(soon.min(NAP));
                    }
                }
                _ => self.poll.poll(&mut events, Some(Duration::from_millis(1)))?,
            }
            for event in &events {
                self.read(event.token().0)?;
            }
            now = Instant::now();
        }
        Ok(self.finish())
    }

    fn ask(&mut self, place: usize, due: Instant) -> anyhow::Result<()> {
        if self.numbers.is_empty() {
            let first = NUMBERS.fetch_add(NUMBERS_AT_ONCE, Ordering::Relaxed);
            self.numbers = first..first + NUMBERS_AT_ONCE;
        }
        let number = self.numbers.start;
        self.numbers.start += 1;
        let connection = &mut self.connections[place];
        connection.request.number(number);
        connection.due = Some(due);
        connection.filled = 0;
        // It is far smaller than the socket's buffer, which is empty.
        match connection.stream.write(&connection.request.text) {
            Ok(written) if written == connection.request.text.len() => Ok(()),
            Ok(_) => anyhow::bail!("a request did not go out in one piece"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                anyhow::bail!("a request did not go out at once")
            }
            Err(_) => self.reconnect(place),
        }
    }

    fn reconnect(&mut self, place: usize) -> anyhow::Result<()> {
        let connection = &mut self.connections[place];
        connection.stream = connect(self.load.address, place, &self.poll)?;
        connection.filled = 0;
        // One that nobody waits on may be closed at any time.
        if connection.due.take().is_some() {
            self.report.broken += 1;
            self.report.unanswered += 1;
            self.idle.push_back(place);
        }
        Ok(())
    }

    /// Takes what has come, and asks again where nothing is to be waited for.
    fn read(&mut self, place: usize) -> anyhow::Result<()> {
        loop {
            let connection = &mut self.connections[place];
            if connection.filled == connection.answer.len() {
                anyhow::ensure!(connection.filled < ANSWER_BYTES_MAX, "an answer has no end");
                connection.answer.resize(connection.filled * 2, 0);
            }
            let room = connection.answer.len() - connection.filled;
            match connection.stream.read(&mut connection.answer[connection.filled..]) {
                Ok(0) => return self.reconnect(place),
                Ok(count) => {
                    connection.filled += count;
                    if let Some(answer) = parse(&connection.answer[..connection.filled])? {
                        self.answered(place, &answer)?;
                        return Ok(());
                    }
                    // Less than there was room for: the rest will be told of by another event.
                    if count < room {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.reconnect(place),
            }
        }
    }

    fn answered(&mut self, place: usize, answer: &Answer) -> anyhow::Result<()> {
        let now = Instant::now();
        let connection = &mut self.connections[place];
        // A server says 408 to one who has not asked for long, and closes.
        let Some(due) = connection.due.take() else { return self.reconnect(place) };
        let status = usize::from(answer.status.min(599));
        self.statuses[status] += 1;
        let granted = is_granted(answer.status);
        if (self.from..self.until).contains(&due) {
            self.measured[status] += 1;
            if granted {
                let micros = u64::try_from((now - due).as_micros()).unwrap_or(u64::MAX);
                self.report.latencies.saturating_record(micros);
            }
        }
        if (self.from..self.until).contains(&now) {
            self.answers += 1;
            self.granted += u64::from(granted);
        }
        if !granted {
            self.report.told_to_wait += u64::from(answer.status == 503 && answer.retry_after);
            if self.report.refusal.is_none() {
                let text = String::from_utf8_lossy(&connection.answer[..answer.bytes]);
                self.report.refusal = Some(text.into_owned());
            }
        }
        if answer.closes {
            connection.stream = connect(self.load.address, place, &self.poll)?;
        }
        if self.interval.is_some() {
            match self.waiting.pop_front() {
                Some(due) => return self.ask(place, due),
                None => self.idle.push_back(place),
            }
        } else if now < self.until {
            return self.ask(place, now);
        } else {
            self.idle.push_back(place);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn finish(self) -> Report {
        let Self { load, statuses, measured, answers, granted, mut report, .. } = self;
        let counts = |counts: &[u64; 600]| {
            let counts = (0_u16..).zip(counts.iter().copied());
            counts.filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
        };
        report.statuses = counts(&statuses);
        report.measured = counts(&measured);
        report.rate = answers as f64 / load.duration.as_secs_f64();
        report.granted_rate = granted as f64 / load.duration.as_secs_f64();
        // Those that still wait have waited at least so long.
        let now = Instant::now();
        let under_way = self.connections.iter().filter_map(|connection| connection.due);
        for due in under_way.chain(self.waiting) {
            report.unanswered += 1;
            let micros = u64::try_from((now - due).as_micros()).unwrap_or(u64::MAX);
            report.latencies.saturating_record(micros);
        }
        report
    }
}

fn connect(address: SocketAddr, place: usize, poll: &Poll) -> anyhow::Result<TcpStream> {
    let stream = std::net::TcpStream::connect(address)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(place), Interest::READABLE)?;
    Ok(stream)
}

/// The answer, once it is whole.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.context("an answer without a status")?;
    let (mut body, mut retry_after, mut closes) = (None, false, false);
    for header in &*response.headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = Some(std::str::from_utf8(header.value)?.parse::<usize>()?);
        } else if header.name.eq_ignore_ascii_case("retry-after") {
            retry_after = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            closes = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let body = body.context("an answer without a length")?;
    let bytes_in_all = head + body;
    Ok((bytes.len() >= bytes_in_all).then_some(Answer {
        status,
        retry_after,
        closes,
        bytes: bytes_in_all,
    }))
}
