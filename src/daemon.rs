//! The daemon: wiring, start, and the order of stopping.
//!
//! Main owns the stoppers; dropping one is the broadcast to its group. Any thread's end ends the process.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, tick, unbounded};
use sha2::{Digest, Sha256};

use crate::config::{Config, Current, Refused};
use crate::core::gate::suspects;
use crate::deliver::{Acceptances, Claimer, Fill, Flow, Permits, PutOff, Settler, Worker};
use crate::downstream::Service;
use crate::ingest::{Consumer, ConsumerParts};
use crate::ops::certificates::Certificates;
use crate::ops::exporter::Exporter;
use crate::ops::health::Health;
use crate::ops::instance::{self, Instance};
use crate::ops::metrics::{Identity, Metrics};
use crate::ops::pulse::Pulses;
use crate::ops::signals::{self, Asked};
use crate::ops::spawn::{Exit, spawn};
use crate::ops::stop::{Stopper, group};
use crate::ops::throttle::Throttle;
use crate::ops::watchdog::Watchdog;
use crate::ops::{VERSION, doorman, exporter, logging, systemd};
use crate::source::{self, SourceError, TroubleKind};
use crate::store::{ERROR_KINDS, GateBoard, LeaseTime, Link, Patience, Pool, Room, Timelines};
use crate::upkeep::{KafkaTls, Upkeep};

/// What was last said about the health.
#[derive(Default)]
struct Said {
    words: String,
    reasons: Vec<&'static str>,
    logged: Option<Instant>,
}

impl Said {
    /// `STATUS=` follows every word; the log says when the reasons change, and while there are any once a minute.
    fn say(&mut self, health: &Health, now: Instant) {
        let words = health.words();
        if words != self.words {
            systemd::status(&words);
        }
        let reasons: Vec<&'static str> = health.waits().into_iter().map(|(reason, _)| reason).collect();
        let a_minute_ago = self.logged.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(60));
        if reasons != self.reasons || (a_minute_ago && !reasons.is_empty()) || self.logged.is_none() {
            log::info!("{words}");
            self.logged = Some(now);
        }
        (self.words, self.reasons) = (words, reasons);
    }
}

/// The threads that run, by name, and what stops which of them.
struct Running {
    exits: Receiver<Exit>,
    alive: BTreeSet<String>,
    intake: Stopper,
    upkeep: Stopper,
    exporter: Stopper,
    health: Health,
    metrics: Metrics,
    service: Service,
    certificates: Certificates,
    /// Of the threads on a transaction's way, by their names.
    links: Vec<(&'static str, Patience)>,
    pulses: Pulses,
    room: Arc<Room>,
    permits: Arc<Permits>,
    /// Dropped first at a stop.
    fill: Fill,
    _instance: Option<Instance>,
}

/// For each question to a broker before it is read from.
const PREFLIGHT: Duration = Duration::from_secs(3);

/// A statement may take its time; one that takes longer than this is worth a word.
const SILENCE: Duration = Duration::from_secs(3);

impl Running {
    /// While PostgreSQL owes an answer its thread waits and can say nothing itself.
    fn note_silence(&self) {
        let silence = self.links.iter().filter_map(|(name, link)| Some((link.silence()?, name))).max();
        match silence.filter(|(silence, _)| *silence > SILENCE) {
            Some((silence, name)) => {
                self.metrics.postgres_up.set(0);
                self.health.wait(
                    "answers",
                    "postgres",
                    format!("PostgreSQL has owed {name} an answer for {} s", silence.as_secs()),
                );
            }
            None => self.health.go("answers", "postgres"),
        }
    }

    /// Shows when certificates end, and warns of it.
    fn note_certificates(&mut self) {
        let expires_at = self.service.certificate_expires_at().unwrap_or(0);
        self.metrics.certificate_expiry_timestamp_seconds.with_label_values(&["downstream"]).set(expires_at as f64);
        self.certificates.look(&self.metrics, Instant::now());
    }
}

/// Runs a pipeline until a signal asks to stop. An error that carries `ExitWith` names the exit status.
pub fn run(config: Config) -> anyhow::Result<()> {
    let asks = signals::listen()?;
    let current = Current::new(config);
    let config = current.get();
    let mut running = start(&current)?;
    let mut said = Said::default();
    said.say(&running.health, Instant::now());
    systemd::ready();
    log::info!(pipeline = config.name.as_str(); "txrelay {} relays {} to {}", VERSION,
        config.kafka.topics.join(", "), config.downstream.origin());
    let mut watchdog = Watchdog::new();
    let ticks = tick(watchdog.every());
    let failed = loop {
        select! {
            recv(asks) -> asked => match asked {
                Ok(Asked::Stop) | Err(_) => break None,
                Ok(Asked::Reload) => reload(&current, &running),
                Ok(Asked::Dump) => dump(&running),
            },
            recv(running.exits) -> exit => break exit.ok(),
            recv(ticks) -> _ => {
                running.note_silence();
                running.note_certificates();
                said.say(&running.health, Instant::now());
                watchdog.look(&running.pulses, Instant::now());
            }
        }
    };
    // The thread that has ended, if one has, is the reason for the exit; the others are stopped in order all the same.
    let reason = failed.map(|exit| {
        running.alive.remove(&exit.thread);
        let error = exit.result.err().unwrap_or_else(|| anyhow::anyhow!("ended by itself"));
        error.context(format!("thread {} has ended", exit.thread))
    });
    if let Some(error) = &reason {
        log::error!("{error:#}");
    }
    let stopped = stop(running, current.get().shutdown_timeout, &asks);
    match reason {
        Some(error) => Err(error),
        None => stopped,
    }
}

fn start(current: &Current) -> anyhow::Result<Running> {
    let config = &current.get();
    let listener = exporter::bind(config.metrics_listen)?;
    let instance = instance::state_directory().map(|directory| instance::lock(&directory)).transpose()?;
    let service = Service::new(&config.downstream)?;
    let metrics = Metrics::new(Identity {
        pipeline: &config.name,
        schema: &config.postgres.schema,
        client: config.kafka.client.word(),
        topics: &config.kafka.topics,
        kafka_errors: &TroubleKind::ALL.map(TroubleKind::label),
        postgres_errors: &ERROR_KINDS,
    });
    metrics.workers.set(config.downstream.workers as i64);
    let health = Health::new(metrics.clone());
    // Before any thread runs: /readyz must not say yes in between.
    health.wait("upkeep", "postgres", "connecting to PostgreSQL");
    health.wait("consumer", "kafka", "Kafka, which waits for PostgreSQL");
    let time = LeaseTime { lease: config.postgres.lease, timeout: config.downstream.timeout };
    let room = Room::new(config.downstream.workers, time);
    let flow = Flow::new();
    let fill = flow.fill();
    let deadline = Arc::new(OnceLock::new());
    let ((intake, stop_intake), (upkeep, stop_upkeep), (exporter, stop_exporter)) =
        (group(&deadline), group(&deadline), group(&deadline));
    // A thread reports its end once, and main may be busy stopping others then.
    let (ended, exits) = unbounded();
    let pulses = Pulses::default();
    let mut alive = BTreeSet::new();
    let mut thread = |name: String, work: Box<dyn FnOnce() -> anyhow::Result<()> + Send>| -> anyhow::Result<()> {
        alive.insert(name.clone());
        spawn(name, &ended, &pulses, work).map(drop)
    };
    let timelines = Timelines::default();
    let mut links = Vec::new();
    let mut link = |role| {
        let link = Link::new(&config.postgres, &config.name, role, &timelines);
        links.push((role, link.patience()));
        link
    };

    let (listening, stop_doorman) = (listener.local_addr()?, stop_exporter.clone());
    thread("doorman".into(), Box::new(move || doorman::run(listening, &stop_doorman)))?;
    let exporter_ =
        Exporter { listener, metrics: metrics.clone(), health: health.clone(), pulses: pulses.clone(), stop: stop_exporter };
    thread("exporter".into(), Box::new(move || exporter_.run()))?;

    let (to_consumer, for_consumer) = bounded(1);
    let (to_claimer, for_claimer) = bounded(1);
    let (to_settler, for_settler) = bounded(1);
    // Not counted yet.
    let open_deliveries = Arc::new(AtomicI64::new(-1));
    let board = Arc::new(GateBoard::default());
    let keeper = Upkeep {
        gate: board.clone(),
        config: current.clone(),
        open: open_deliveries.clone(),
        pool: Pool::new(&config.postgres, &config.name, &timelines),
        room: room.clone(),
        unsettled: flow.unsettled.clone(),
        instance: instance.as_ref().map(|instance| instance.mark.clone()),
        metrics: metrics.clone(),
        health: health.clone(),
        throttle: Throttle::per_minute(),
        stop: stop_upkeep,
    };
    thread("upkeep".into(), Box::new(move || keeper.run(&[to_consumer, to_claimer, to_settler])))?;

    if config.kafka.tls.is_some() {
        // In no group that a stop waits for: it has nothing to finish, and may be shaking hands with a broker that hangs.
        let certificates = KafkaTls { config: current.clone(), metrics: metrics.clone(), stop: stop_intake.clone() };
        thread("kafka-tls".into(), Box::new(move || certificates.run()))?;
    }

    let settler = Settler {
        link: link("settler"),
        unsettled: flow.unsettled.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake.clone(),
        put_off: PutOff::new(flow.brake.clone()),
        throttle: Throttle::per_minute(),
    };
    let outcomes = flow.outcomes.1;
    thread("settler".into(), Box::new(move || settler.run(&for_settler, &outcomes)))?;

    let permits = Permits::new(
        Permits::settings(config),
        &config.file,
        room.clone(),
        metrics.clone(),
        health.clone(),
        board,
        open_deliveries.clone(),
    );
    let acceptances = Arc::new(Acceptances::default());
    let said = Arc::new(Mutex::new(Throttle::per_minute()));
    for n in 0..config.downstream.workers {
        let worker = Worker {
            transport: service.transport(),
            acceptances: acceptances.clone(),
            permits: permits.clone(),
            suspects: (n < suspects::workers(config.downstream.workers)).then(|| flow.suspects.1.clone()),
            brake: flow.brake.clone(),
            room: room.clone(),
            config: current.clone(),
            metrics: metrics.clone(),
            said: said.clone(),
            stop: stop_intake.clone(),
        };
        let (handoff, outcomes) = (flow.handoff.1.clone(), flow.outcomes.0.clone());
        thread(format!("worker-{n}"), Box::new(move || worker.run(&handoff, &outcomes)))?;
    }

    let claimer = Claimer {
        link: link("claimer"),
        room: room.clone(),
        permits: permits.clone(),
        suspects: flow.suspects.0,
        put_off: config.gate.probe_cap,
        time,
        poll: Claimer::POLL,
        fitting: 500,
        in_doubt: None,
        empty_since: None,
        unsettled: flow.unsettled.clone(),
        brake: flow.brake.clone(),
        throttle: Throttle::per_minute(),
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake.clone(),
    };
    let (handoff, wake) = (flow.handoff.0.clone(), flow.wake.1);
    thread("claimer".into(), Box::new(move || claimer.run(&for_claimer, &wake, &handoff)))?;

    let static_member = instance.as_ref().map(|instance| static_member(config, instance));
    let kafka = current.clone();
    let consumer = Consumer::new(ConsumerParts {
        config: current.clone(),
        open_deliveries,
        link: link("consumer"),
        room: room.clone(),
        time,
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake,
        handoff: flow.handoff.0,
        wake: flow.wake.0,
        open: Box::new(move || {
            let kafka = &kafka.get().kafka;
            match source::preflight::refusal(kafka, PREFLIGHT) {
                Some(why) => Err(SourceError::Request(why)),
                None => source::open(kafka, static_member.as_deref()),
            }
        }),
    });
    thread("consumer".into(), Box::new(move || consumer.run(&for_consumer)))?;

    // What is left of `flow` here would keep threads from ending: it goes out of scope, and with it the last ends of main.
    let certificates = Certificates::new();
    Ok(Running {
        exits,
        alive,
        intake,
        upkeep,
        exporter,
        health,
        metrics,
        service,
        certificates,
        links,
        pulses,
        room,
        permits,
        fill,
        _instance: instance,
    })
}

/// The `group.instance.id`: this installation's, so that it has its partitions again at once after a restart, and its topics':
/// Kafka gives a static member that comes back its old assignment without looking at what it subscribes to now, and a topic
/// that was added to the file would not be read until something else moved the group.
fn static_member(config: &Config, instance: &Instance) -> String {
    let mut topics = config.kafka.topics.clone();
    topics.sort();
    let hash = Sha256::digest(topics.join("\n"));
    let mark: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("txrelay-{}-{}-{mark}", config.name, instance.mark.id)
}

/// Consumer and claimer first, then the workers (the request in hand is finished, the rest given back), the settler (it
/// flushes), upkeep, and last the exporter. A second signal, or the end of `time`, ends it at once.
fn stop(running: Running, time: Duration, asks: &Receiver<Asked>) -> anyhow::Result<()> {
    let began = Instant::now();
    let by = began + time;
    systemd::stopping();
    systemd::extend_timeout(time + Duration::from_secs(5));
    running.health.stopping();
    log::info!("stopping: at most {time:?}");
    // The state file's lock is held to the end.
    let Running { exits, alive, intake, upkeep, exporter, fill, _instance, .. } = running;
    drop(fill);
    let mut ending = Ending { alive, exits: &exits, asks, began, by, ended: Vec::new(), failed: None };
    intake.stop(by);
    ending.wait_for("consumer and claimer", |name| name == "consumer" || name == "claimer")?;
    ending.wait_for("workers", |name| name.starts_with("worker-"))?;
    ending.wait_for("settler", |name| name == "settler")?;
    upkeep.stop(by);
    ending.wait_for("upkeep", |name| name == "upkeep")?;
    exporter.stop(by);
    ending.wait_for("exporter", |name| name == "exporter" || name == "doorman")?;
    log::info!("stopped: {}", ending.ended.join(", "));
    ending.failed.map_or(Ok(()), Err)
}

/// A stop on its way.
struct Ending<'a> {
    alive: BTreeSet<String>,
    exits: &'a Receiver<Exit>,
    asks: &'a Receiver<Asked>,
    began: Instant,
    by: Instant,
    /// Groups that have ended, and when.
    ended: Vec<String>,
    failed: Option<anyhow::Error>,
}

impl Ending<'_> {
    /// Waits until no thread of a group runs.
    fn wait_for(&mut self, group: &str, is_in_group: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        loop {
            let left: Vec<&str> = self.alive.iter().map(String::as_str).filter(|name| is_in_group(name)).collect();
            if left.is_empty() {
                self.ended.push(format!("{group} after {} ms", self.began.elapsed().as_millis()));
                return Ok(());
            }
            select! {
                recv(self.exits) -> exit => {
                    let Ok(exit) = exit else { anyhow::bail!("{} ended without a word", left.join(", ")) };
                    self.alive.remove(&exit.thread);
                    if let Err(error) = exit.result {
                        log::error!("thread {} failed while stopping: {error:#}", exit.thread);
                        self.failed = Some(error);
                    }
                }
                recv(self.asks) -> asked => {
                    anyhow::ensure!(asked != Ok(Asked::Stop), "stopped at once by a second signal; still running: {}", left.join(", "));
                }
                default(self.by.saturating_duration_since(Instant::now())) => {
                    anyhow::bail!("shutdown.timeout is over; still running: {}", left.join(", "));
                }
            }
        }
    }
}

/// SIGHUP: the file again, whole or not at all.
fn reload(current: &Current, running: &Running) {
    let metrics = &running.metrics;
    systemd::reloading();
    match current.reload() {
        Ok(changed) => {
            metrics.reloaded();
            match running.service.read_secrets_again() {
                Ok(true) => log::info!("the files with the secrets for the service hold new ones: used from now on"),
                Ok(false) => {}
                // The reload has found nothing wrong with them: somebody is writing them at this moment.
                Err(problem) => log::error!("{problem}; what was read before stays in use"),
            }
            running.permits.reload(&current.get());
            logging::set_level(current.get().log.level);
            if changed.is_empty() {
                log::info!("configuration reloaded: nothing has changed");
            } else {
                log::info!("configuration reloaded: changed {}", changed.join(", "));
            }
        }
        Err(refused) => {
            metrics.config_last_reload_successful.set(0);
            match refused {
                Refused::Problems(problems) => {
                    problems.to_string().lines().for_each(|problem| log::error!("{problem}"));
                    let n = problems.count();
                    let words = if n == 1 { "problem" } else { "problems" };
                    log::error!("configuration not reloaded, the old one stays: {n} {words}");
                }
                Refused::Restart { restart, reload } => {
                    let also = if reload.is_empty() { String::new() } else { format!("; also changed: {}", reload.join(", ")) };
                    log::error!(
                        "configuration not reloaded, the old one stays: only a restart can change {}{also}",
                        restart.join(", ")
                    );
                }
            }
        }
    }
    systemd::ready();
}

/// SIGUSR1: what every thread does, how full the queues are, and what is waited for.
fn dump(running: &Running) {
    log::info!("state: {}; {} requests in flight", running.health.words(), running.metrics.requests_in_flight.get());
    for line in running.pulses.report(Instant::now()) {
        log::info!("state: {line}");
    }
    let (rows, bytes, most) = running.room.held();
    log::info!("state: queues: {}; room: {rows} of {most} rows, {bytes} bytes", running.fill.words());
    let positions = running.metrics.positions();
    log::info!("state: positions: {}", if positions.is_empty() { "none".to_owned() } else { positions.join(", ") });
}
