//! What the control loop does about a hand-over: on the old side from SIGUSR2 to the drain, on the new side after its start.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::successor::{Estate, Successor};
use super::{News, Predecessor, Program, Report, Sockets, Word};
use crate::control::reload::{self, Loaded};
use crate::control::serve::{Control, Flow, Internal, Phase};
use crate::control::{notify, reload::Stage as Reloading};
use crate::registry::origins;
use crate::telemetry::log::Level;

/// The tasks that answer on the admin listeners.
#[derive(Debug, Default)]
pub struct AdminTasks {
    pub address: Option<JoinHandle<()>>,
    pub socket: Option<JoinHandle<()>>,
}

/// Where a hand-over to a successor stands.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    None,
    /// It has been started and does not serve yet.
    Starting {
        successor: Successor,
        /// The configuration may have changed since it read it.
        reload: bool,
    },
    /// It serves, and this process drains.
    Done,
}

/// What a process needs to hand itself over, and whom it took over from.
#[derive(Debug)]
pub struct Handover {
    program: Option<Program>,
    /// The listening sockets, to be given to a successor. `None` once this process drains.
    sockets: Option<Arc<Sockets>>,
    admin: AdminTasks,
    stage: Stage,
    attempts: u64,
    predecessor: Option<Predecessor>,
}

impl Handover {
    /// A process that serves; what its predecessor says comes in as `Internal::Predecessor`.
    pub fn new(
        program: Option<Program>,
        sockets: Sockets,
        admin: AdminTasks,
        predecessor: Option<Predecessor>,
        internal: &UnboundedSender<Internal>,
    ) -> Self {
        if let Some(predecessor) = predecessor.clone() {
            let internal = internal.clone();
            // Without the thread nothing is heard: the old process drains all the same.
            let _ = std::thread::Builder::new().name("hostward-elder".into()).spawn(move || {
                loop {
                    let word = predecessor.listen();
                    if internal.send(Internal::Predecessor(word)).is_err() || word == Word::Ended {
                        return;
                    }
                }
            });
        }
        Self { program, sockets: Some(Arc::new(sockets)), admin, stage: Stage::None, attempts: 0, predecessor }
    }

    /// Closes this side's copies of the listening sockets.
    pub fn let_go_of_sockets(&mut self) {
        self.sockets = None;
    }

    /// The configuration may be another one from now on: a successor that has read it reads it again.
    pub fn note_reload(&mut self) {
        if let Stage::Starting { reload, .. } = &mut self.stage {
            *reload = true;
        }
    }

    /// The connections that are left at the predecessor are to be judged by what was read now.
    pub fn tell_reloaded(&self) {
        if let Some(predecessor) = &self.predecessor {
            predecessor.reloaded();
        }
    }

    /// Whether a successor's reloads reach a predecessor through this process.
    pub fn stands_between(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.predecessor.is_some()
    }

    /// Whom this process took over from, as long as it lives.
    pub fn predecessor_pid(&self) -> Option<i32> {
        self.predecessor.as_ref().map(|predecessor| predecessor.pid)
    }
}

impl Control {
    /// SIGUSR2: starts a successor, unless one is on its way or this process ends.
    pub fn hand_over(&mut self) {
        let refused = match (&self.phase, &self.handover.stage, &self.handover.program) {
            (Phase::Draining { .. }, ..) => "this process drains",
            (_, Stage::Starting { .. } | Stage::Done, _) => "one is under way",
            (_, _, None) => "this process was not started by `hostward run`, or its program cannot be found",
            (Phase::Serving, Stage::None, Some(_)) => return self.start_successor(),
        };
        self.event(Level::Warn, "handover_refused", vec![("why", refused.into())]);
    }

    fn start_successor(&mut self) {
        let (Some(program), Some(sockets)) = (&self.handover.program, &self.handover.sockets) else { return };
        self.handover.attempts += 1;
        let estate = Estate {
            sockets: Arc::clone(sockets),
            snapshot: Arc::clone(&self.published.snapshot),
            keyring: Arc::clone(&self.published.ticket_keys),
        };
        let internal = self.internal.clone();
        let report = move |report| drop(internal.send(Internal::Successor(report)));
        match Successor::start(program, estate, self.handover.attempts, report) {
            Ok(successor) => {
                let fields = vec![
                    ("successor", successor.pid.into()),
                    ("program", program.path.display().to_string().into()),
                    ("generation", self.published.snapshot.generation.into()),
                ];
                self.event(Level::Info, "handover_started", fields);
                self.handover.stage = Stage::Starting { successor, reload: false };
            }
            Err(why) => self.handover_failed(why),
        }
    }

    fn handover_failed(&mut self, why: String) {
        self.handover.stage = Stage::None;
        self.metrics.handovers_failed += 1;
        self.event(Level::Error, "handover_failed", vec![("why", why.into())]);
    }

    /// This process is to end: whoever has been started does not take over any more.
    pub fn give_up_handover(&mut self) {
        if let Stage::Starting { successor, .. } = std::mem::take(&mut self.handover.stage) {
            successor.give_up();
            self.event(Level::Warn, "handover_given_up", vec![("successor", successor.pid.into())]);
        }
    }

    /// What the successor did.
    pub fn successor_reported(&mut self, Report { attempt, news }: Report) -> Flow {
        if attempt != self.handover.attempts {
            return Flow::On;
        }
        match (news, std::mem::take(&mut self.handover.stage)) {
            (News::Failed(why), Stage::Starting { .. }) => self.handover_failed(why),
            (News::Serving { refused, admin_address, admin_socket }, Stage::Starting { successor, reload }) => {
                self.handover.stage = Stage::Done;
                // A reload that is under way began before or after the successor read the configuration: who knows.
                let reload = reload || !matches!(self.reload.stage, Reloading::Idle);
                self.let_go(&successor, admin_address, admin_socket);
                let listeners = self.listen.iter().chain(&self.redirect).copied();
                let handed_over: Vec<_> = listeners.filter(|address| !refused.contains(address)).collect();
                let fields = vec![
                    ("successor", successor.pid.into()),
                    ("listen", handed_over.iter().map(ToString::to_string).collect()),
                ];
                self.event(Level::Info, "handed_over", fields);
                self.begin_drain("hand-over", Some(handed_over));
                successor.over(reload);
            }
            (News::Reloaded, Stage::Done) => {
                self.handover.stage = Stage::Done;
                self.handover.tell_reloaded();
                self.rejudge();
            }
            // Drained in its turn: another one serves, or the service was stopped.
            (News::Gone { orderly: true, .. }, Stage::Done) => self.handover.stage = Stage::Done,
            (News::Gone { why, .. }, Stage::Done) => {
                self.event(Level::Error, "successor_gone", vec![("why", why.into())]);
                // Nobody accepts any more. As long as this process lives no supervisor starts another.
                return Flow::Stop;
            }
            // Given up meanwhile: whatever it did is of no account.
            (_, stage) => self.handover.stage = stage,
        }
        Flow::On
    }

    /// Leaves to the successor what it has taken, beside the listeners, and tells systemd whom to watch.
    fn let_go(&mut self, successor: &Successor, admin_address: bool, admin_socket: bool) {
        notify::main_process(successor.pid);
        let tasks = std::mem::take(&mut self.handover.admin);
        if admin_address && let Some(task) = tasks.address {
            task.abort();
        }
        if admin_socket {
            if let Some(task) = tasks.socket {
                task.abort();
            }
            self.own_socket.leave();
        }
    }

    /// Reads what the successor serves by now, to judge the connections that are left here (I6). Nothing else changes:
    /// keys that are fixed for the life of a process do not matter to one that ends.
    fn rejudge(&mut self) {
        let known = self.names.known.keys().cloned().collect();
        let load = reload::load(self.path.as_path().into(), None, Arc::clone(&self.published.snapshot), known);
        let internal = self.internal.clone();
        tokio::spawn(async move { drop(internal.send(Internal::Rejudged(load.await.map(Box::new)))) });
    }

    /// See [`Self::rejudge`].
    pub fn rejudged(&mut self, loaded: Result<Box<Loaded>, Vec<String>>) {
        match loaded {
            Ok(loaded) => {
                let Loaded { assembled, asked, answers, .. } = *loaded;
                let wanted = origins::names_to_resolve(&assembled.snapshot);
                self.learn(&wanted, asked, answers);
                self.publish(assembled.snapshot, None);
                self.event(Level::Info, "judged_by_successors_configuration", vec![]);
            }
            Err(problems) => self.event(Level::Error, "not_judged_anew", vec![("problems", problems.into())]),
        }
    }

    /// What the predecessor said.
    pub fn predecessor_said(&mut self, word: Word) {
        match word {
            Word::Over { reload } => {
                notify::ready(self.published.snapshot.len(), self.published.snapshot.generation);
                if reload {
                    self.reload(None);
                }
            }
            Word::Ended => {
                if let Some(predecessor) = self.handover.predecessor.take() {
                    self.event(Level::Info, "predecessor_ended", vec![("predecessor", predecessor.pid.into())]);
                }
            }
        }
    }
}
