//! The daemon: wiring, start, and the order of stopping.
//!
//! Main owns the stoppers; dropping one is the broadcast to its group. Any thread's end ends the process.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, unbounded};

use crate::config::Config;
use crate::core::backoff::Policy;
use crate::deliver::{Acceptances, Claimer, Flow, Settler, Worker};
use crate::downstream::Service;
use crate::ingest::{Consumer, ConsumerParts};
use crate::ops::health::Health;
use crate::ops::instance::{self, Instance};
use crate::ops::metrics::{Identity, Metrics};
use crate::ops::signals::{self, Asked};
use crate::ops::spawn::{Exit, spawn};
use crate::ops::stop::{Stopper, group};
use crate::ops::throttle::Throttle;
use crate::ops::{VERSION, exporter, systemd};
use crate::source::{self, TroubleKind};
use crate::store::{ERROR_KINDS, LeaseTime, Link, Pool, Room};
use crate::upkeep::Upkeep;

/// The threads that run, by name, and what stops which of them.
struct Running {
    exits: Receiver<Exit>,
    alive: BTreeSet<String>,
    intake: Stopper,
    upkeep: Stopper,
    exporter: Stopper,
    health: Health,
    metrics: Metrics,
    _instance: Option<Instance>,
}

/// Runs a pipeline until a signal asks to stop. An error that carries `ExitWith` names the exit status.
pub fn run(config: Config) -> anyhow::Result<()> {
    let asks = signals::listen()?;
    let config = Arc::new(config);
    let mut running = start(&config)?;
    systemd::ready();
    log::info!(pipeline = config.name.as_str(); "txrelay {} relays {} to {}", VERSION,
        config.kafka.topics.join(", "), config.downstream.origin());
    let mut last_words = String::new();
    let failed = loop {
        select! {
            recv(asks) -> asked => match asked {
                Ok(Asked::Stop) | Err(_) => break None,
                Ok(Asked::Reload) => log::warn!("this version does not reload its configuration: restart it"),
                Ok(Asked::Dump) => dump(&running),
            },
            recv(running.exits) -> exit => break exit.ok(),
            default(Duration::from_secs(1)) => {
                let words = running.health.words();
                if words != last_words {
                    systemd::status(&words);
                    log::info!("{words}");
                    last_words = words;
                }
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
    let stopped = stop(running, config.shutdown_timeout, &asks);
    match reason {
        Some(error) => Err(error),
        None => stopped,
    }
}

fn start(config: &Arc<Config>) -> anyhow::Result<Running> {
    let listener = exporter::bind(config.metrics_listen)?;
    let instance = instance::state_directory().map(|directory| instance::lock(&directory)).transpose()?;
    let service = Service::new(&config.downstream)?;
    let metrics = Metrics::new(Identity {
        pipeline: &config.name,
        schema: &config.postgres.schema,
        client: "librdkafka",
        topics: &config.kafka.topics,
        kafka_errors: &TroubleKind::ALL.map(TroubleKind::label),
        postgres_errors: &ERROR_KINDS,
    });
    metrics.workers.set(config.downstream.workers as i64);
    let health = Health::new(metrics.clone());
    let time = LeaseTime { lease: config.postgres.lease, timeout: config.downstream.timeout };
    let room = Room::new(config.downstream.workers, time);
    let flow = Flow::new();
    let deadline = Arc::new(OnceLock::new());
    let ((intake, stop_intake), (upkeep, stop_upkeep), (exporter, stop_exporter)) =
        (group(&deadline), group(&deadline), group(&deadline));
    // A thread reports its end once, and main may be busy stopping others then.
    let (ended, exits) = unbounded();
    let mut alive = BTreeSet::new();
    let mut thread = |name: String, work: Box<dyn FnOnce() -> anyhow::Result<()> + Send>| -> anyhow::Result<()> {
        alive.insert(name.clone());
        spawn(name, &ended, work).map(drop)
    };
    let link = |role| Link::new(&config.postgres, &config.name, role);

    let (metrics_, health_) = (metrics.clone(), health.clone());
    thread("exporter".into(), Box::new(move || exporter::run(&listener, &metrics_, &health_, &stop_exporter)))?;

    let (to_consumer, for_consumer) = bounded(1);
    let (to_claimer, for_claimer) = bounded(1);
    let (to_settler, for_settler) = bounded(1);
    let keeper = Upkeep {
        config: config.clone(),
        pool: Pool::new(&config.postgres, &config.name),
        room: room.clone(),
        instance: instance.as_ref().map(|instance| instance.id),
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_upkeep,
    };
    thread("upkeep".into(), Box::new(move || keeper.run(&[to_consumer, to_claimer, to_settler])))?;

    let settler = Settler {
        link: link("settler"),
        unsettled: flow.unsettled.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake.clone(),
    };
    let outcomes = flow.outcomes.1;
    thread("settler".into(), Box::new(move || settler.run(&for_settler, &outcomes)))?;

    let acceptances = Arc::new(Acceptances::default());
    let policy = Policy {
        base: config.retry.base,
        cap: config.retry.cap,
        give_up_after: config.retry.give_up_after,
        probe_cap: config.gate.probe_cap,
    };
    let said = Arc::new(Mutex::new(Throttle::per_minute()));
    for n in 0..config.downstream.workers {
        let worker = Worker {
            transport: service.transport(),
            acceptances: acceptances.clone(),
            room: room.clone(),
            policy,
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
        time,
        poll: Claimer::POLL,
        unsettled: flow.unsettled.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake.clone(),
    };
    let (handoff, wake) = (flow.handoff.0.clone(), flow.wake.1);
    thread("claimer".into(), Box::new(move || claimer.run(&for_claimer, &wake, &handoff)))?;

    let static_member = instance.as_ref().map(|instance| format!("txrelay-{}-{}", config.name, instance.id));
    let kafka = config.kafka.clone();
    let consumer = Consumer::new(ConsumerParts {
        config: config.clone(),
        link: link("consumer"),
        room,
        time,
        metrics: metrics.clone(),
        health: health.clone(),
        stop: stop_intake,
        handoff: flow.handoff.0,
        wake: flow.wake.0,
        open: Box::new(move || source::open(&kafka, static_member.as_deref())),
    });
    thread("consumer".into(), Box::new(move || consumer.run(&for_consumer)))?;

    // What is left of `flow` here would keep threads from ending: it goes out of scope, and with it the last ends of main.
    Ok(Running { exits, alive, intake, upkeep, exporter, health, metrics, _instance: instance })
}

/// Consumer and claimer first, then the workers (the request in hand is finished, the rest given back), the settler (it
/// flushes), upkeep, and last the exporter. A second signal, or the end of `time`, ends it at once.
fn stop(mut running: Running, time: Duration, asks: &Receiver<Asked>) -> anyhow::Result<()> {
    let began = Instant::now();
    let by = began + time;
    systemd::stopping();
    systemd::extend_timeout(time + Duration::from_secs(5));
    running.health.stopping();
    log::info!("stopping: at most {time:?}");
    running.intake.stop(by);
    let is_intake = |name: &str| matches!(name, "consumer" | "claimer" | "settler") || name.starts_with("worker-");
    let mut order = Vec::new();
    let mut result = wait_for(&mut running.alive, &running.exits, is_intake, by, asks, &mut order);
    running.upkeep.stop(by);
    result = result.and(wait_for(&mut running.alive, &running.exits, |name| name == "upkeep", by, asks, &mut order));
    running.exporter.stop(by);
    result = result.and(wait_for(&mut running.alive, &running.exits, |name| name == "exporter", by, asks, &mut order));
    log::info!("stopped in {:?}: {}", began.elapsed(), order.join(", "));
    result
}

/// Waits until no thread of a group runs. Thread names go to `order` as they end, workers as one.
fn wait_for(
    alive: &mut BTreeSet<String>,
    exits: &Receiver<Exit>,
    in_group: impl Fn(&str) -> bool,
    by: Instant,
    asks: &Receiver<Asked>,
    order: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    while alive.iter().any(|name| in_group(name)) {
        let left: Vec<&str> = alive.iter().map(String::as_str).filter(|name| in_group(name)).collect();
        select! {
            recv(exits) -> exit => {
                let Ok(exit) = exit else { break };
                alive.remove(&exit.thread);
                if let Err(error) = exit.result {
                    log::error!("thread {} failed while stopping: {error:#}", exit.thread);
                    result = Err(error);
                }
                let name = if exit.thread.starts_with("worker-") { "workers".to_owned() } else { exit.thread };
                if !(name == "workers" && alive.iter().any(|other| other.starts_with("worker-"))) {
                    order.push(name);
                }
            }
            recv(asks) -> asked => {
                if asked == Ok(Asked::Stop) {
                    anyhow::bail!("stopped at once by a second signal; still running: {}", left.join(", "));
                }
            }
            default(by.saturating_duration_since(Instant::now())) => {
                anyhow::bail!("shutdown.timeout is over; still running: {}", left.join(", "));
            }
        }
    }
    result
}

fn dump(running: &Running) {
    let threads: Vec<&str> = running.alive.iter().map(String::as_str).collect();
    log::info!(
        "state: {}; {} requests in flight; threads: {}",
        running.health.words(),
        running.metrics.requests_in_flight.get(),
        threads.join(" ")
    );
}
