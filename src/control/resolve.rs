//! Name resolution for origins: through the system's resolver, on helper threads, never on a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::registry::origins::KnownHosts;

/// How often every origin name is asked for again. Long enough not to bother a resolver with a thousand names, short
/// enough that a moved origin is found before people have opened a ticket.
pub const REFRESH: Duration = Duration::from_secs(30);

/// Lookups in progress at once: each holds a helper thread for as long as the resolver takes, which is ten seconds or more
/// when it is down.
const LOOKUPS: usize = 8;

/// What a lookup brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub host: String,
    /// Sorted, so that equal answers are equal; or why there are none.
    pub result: Result<Vec<IpAddr>, String>,
}

/// Looks all hosts up, within `limit` altogether. A host that was not answered by then has no answer in the list.
pub async fn look_up(hosts: BTreeSet<String>, limit: Duration) -> Vec<Answer> {
    let permits = Arc::new(Semaphore::new(LOOKUPS));
    let mut lookups = JoinSet::new();
    for host in hosts {
        let permits = Arc::clone(&permits);
        lookups.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let result = match tokio::net::lookup_host((host.as_str(), 0)).await {
                Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect::<BTreeSet<_>>()),
                Err(error) => Err(error.to_string()),
            };
            let result = result.and_then(|addresses| {
                let none = || Err("the name has no address".to_owned());
                if addresses.is_empty() { none() } else { Ok(addresses.into_iter().collect()) }
            });
            Answer { host, result }
        });
    }
    let mut answers = Vec::with_capacity(lookups.len());
    let collect = async {
        while let Some(lookup) = lookups.join_next().await {
            answers.extend(lookup);
        }
    };
    // Those not answered are abandoned: the next refresh asks again.
    let _ = tokio::time::timeout(limit, collect).await;
    answers
}

/// What is known of the names in use.
#[derive(Debug, Default)]
pub struct Names {
    /// The addresses each name had when it last resolved.
    pub known: KnownHosts,
    /// Names that did not resolve at the last try, with the reason.
    pub failing: BTreeMap<String, String>,
}

impl Names {
    /// Takes the answers to `asked` over and forgets what is not `wanted` any more. A name that was not answered, or with
    /// a reason, keeps its old addresses. Returns the names that began to fail: what the log should tell.
    pub fn learn(
        &mut self,
        wanted: &BTreeSet<String>,
        asked: BTreeSet<String>,
        answers: Vec<Answer>,
    ) -> Vec<(String, String)> {
        let unanswered = asked.into_iter().map(|host| (host, "no answer in time".to_owned()));
        let mut failed: BTreeMap<String, String> = unanswered.collect();
        for Answer { host, result } in answers {
            match result {
                Ok(addresses) => {
                    failed.remove(&host);
                    self.failing.remove(&host);
                    self.known.insert(host, addresses);
                }
                Err(why) => drop(failed.insert(host, why)),
            }
        }
        let mut began = Vec::new();
        for (host, why) in failed {
            if wanted.contains(&host) && self.failing.insert(host.clone(), why.clone()).is_none() {
                began.push((host, why));
            }
        }
        self.known.retain(|host, _| wanted.contains(host));
        self.failing.retain(|host, _| wanted.contains(host));
        began
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Names, look_up};
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn answer(host: &str, result: Result<&str, &str>) -> Answer {
        let result = result.map(|ip| vec![ip.parse().unwrap()]).map_err(str::to_owned);
        Answer { host: host.into(), result }
    }

    #[test]
    fn a_name_that_fails_keeps_its_addresses_and_is_told_once() {
        let (wanted, mut state) = (names(&["a", "b", "c"]), Names::default());
        let began = state.learn(&wanted, wanted.clone(), vec![answer("a", Ok("10.0.0.1")), answer("b", Err("no"))]);
        assert_eq!(began, [("b".into(), "no".into()), ("c".into(), "no answer in time".into())]);
        let began = state.learn(&wanted, wanted.clone(), vec![answer("a", Err("gone")), answer("c", Ok("10.0.0.3"))]);
        assert_eq!(began, [("a".into(), "gone".into())], "b goes on failing");
        assert_eq!(state.known["a"], ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(state.failing.keys().collect::<Vec<_>>(), ["a", "b"]);
        state.learn(&names(&["c"]), wanted, vec![answer("c", Ok("10.0.0.4")), answer("d", Ok("10.0.0.5"))]);
        assert_eq!(state.known.keys().collect::<Vec<_>>(), ["c"], "what is not wanted is forgotten, answered or not");
        assert!(state.failing.is_empty());
    }

    #[tokio::test]
    async fn answers_come_for_names_that_exist_and_reasons_for_those_that_do_not() {
        let hosts = ["localhost", "does-not-exist.invalid"].map(str::to_owned).into();
        let mut answers = look_up(hosts, Duration::from_secs(20)).await;
        answers.sort_by(|a, b| a.host.cmp(&b.host));
        // A machine without DNS may leave the second name unanswered; it must not be answered with an address.
        if answers[0].host == "does-not-exist.invalid" {
            assert!(answers.remove(0).result.is_err());
        }
        let addresses = answers[0].result.as_ref().unwrap();
        assert!(addresses.iter().all(|address| address.is_loopback()), "{addresses:?}");
        assert!(addresses.is_sorted());
    }

    #[tokio::test]
    async fn the_limit_holds_however_many_names_there_are() {
        let hosts: BTreeSet<_> = (0..500).map(|n| format!("host-{n}.invalid")).collect();
        let start = std::time::Instant::now();
        let answers = look_up(hosts.clone(), Duration::from_millis(50)).await;
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(answers.iter().all(|answer| hosts.contains(&answer.host) && answer.result.is_err()));
    }
}
