//! Whether a receiver is right: each case tried, judged and reported.

use std::iter;
use std::time::Duration;

use axum::http::Uri;
use tokio::time::{Instant, timeout};

use crate::cases::{self, Case, Expected};
use crate::connection::{self, Link, NO_ANSWER};

/// How many cases in a row may have no answer in time until the check ends.
const MAX_LATE: u32 = 3;

const LATE: &str = "A Data Connector waits 10 s for an answer and then sends the event again: keep \
                    the event, answer, and do what takes long afterwards.";
const CRASH: &str =
    "Answer 4xx, not 500: otherwise anyone can trigger failures that hide real ones.";
const CLOSED: &str =
    "Answer 4xx: a connection that is closed without an answer hides real failures.";
const NEITHER: &str = "That is neither 2xx nor 4xx: is there a proxy or a login page in front of \
                       the receiver?";

const VERDICTS: [Verdict; 3] = [Verdict::Right, Verdict::Wrong, Verdict::Optional];

/// What came of a request.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Status(u16),
    Late(Duration),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    Optional,
}

/// A case that was tried.
#[derive(Debug)]
struct Tried {
    name: String,
    expected: Expected,
    got: String,
    verdict: Verdict,
    why: Option<&'static str>,
}

/// A check of one receiver, and what it has found.
#[derive(Debug)]
pub(crate) struct Check {
    url: Uri,
    limit: Duration,
    cases: Vec<Case>,
    tried: Vec<Tried>,
    /// Whether there was any answer.
    answered: bool,
    /// Why the check ended before its end, or what is wrong with all of it.
    problem: Option<String>,
    slowest: Duration,
}

impl Check {
    /// Of a receiver each of whose answers may take until `limit`.
    pub(crate) fn new(url: Uri, secret: &str, limit: Duration) -> Self {
        Self {
            cases: cases::all(&url, secret),
            url,
            limit,
            tried: Vec::new(),
            answered: false,
            problem: None,
            slowest: Duration::ZERO,
        }
    }

    /// What to know before it runs.
    pub(crate) fn warning(&self) -> String {
        let is_genuine = |case: &&Case| case.expected == Expected::Accepted;
        let genuine = self.cases.iter().filter(is_genuine);
        let genuine: usize = genuine.map(|case| case.requests.len()).sum();
        let all: usize = self.cases.iter().map(|case| case.requests.len()).sum();
        format!(
            "This sends {genuine} invented events, which {} will take for real ones, and {} forged \
             or unusual ones.\n",
            self.url,
            all - genuine
        )
    }

    /// Tries one case after another, so that what one does to the receiver is not another's fault.
    pub(crate) async fn run(&mut self) {
        let mut late = 0;
        while late < MAX_LATE && self.problem.is_none() && self.tried.len() < self.cases.len() {
            let case = self.cases[self.tried.len()].clone();
            let outcomes = self.ask(&case).await;
            let is_late = matches!(outcomes.last(), Some(Outcome::Late(_)));
            late = if is_late { late + 1 } else { 0 };
            if self.problem.is_none() {
                self.tried.push(case.judge(&outcomes));
            }
        }
        let problem = if late == MAX_LATE {
            connection::LATE.to_owned()
        } else if !self.answered {
            NO_ANSWER.to_owned()
        } else if self.accepts_none() {
            let got = self.tried.first().map_or("", |case| &case.got);
            format!(
                "No genuine event was accepted ({got}), so the rejections prove nothing: is \
                 DT_SIGNATURE_SECRET the same here as at the receiver, and is the URL right?"
            )
        } else {
            return;
        };
        self.problem.get_or_insert(problem);
    }

    /// What came of a case's requests up to the first without an answer.
    async fn ask(&mut self, case: &Case) -> Vec<Outcome> {
        let mut link = Link::new(self.url.clone());
        let mut outcomes = Vec::new();
        for request in &case.requests {
            let sent = Instant::now();
            let answer = timeout(self.limit, link.ask(request)).await;
            self.slowest = sent.elapsed().max(self.slowest);
            match answer {
                Ok(Ok(answer)) => {
                    self.answered = true;
                    outcomes.push(Outcome::Status(answer.status));
                    if !case.shares_connection() {
                        link = Link::new(self.url.clone());
                    }
                    continue;
                }
                Ok(Err(failure)) if failure.advice == NO_ANSWER => outcomes.push(Outcome::Closed),
                Ok(Err(failure)) => {
                    self.problem = Some(format!("{}. {}", failure.text, failure.advice));
                }
                Err(_) => outcomes.push(Outcome::Late(self.limit)),
            }
            break;
        }
        outcomes
    }

    /// 0 if everything was tried and nothing is wrong, 3 if nothing answered, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        let is_whole = self.tried.len() == self.cases.len();
        let is_right = is_whole && self.with(Verdict::Wrong).next().is_none();
        if self.answered {
            u8::from(!is_right)
        } else {
            3
        }
    }

    /// The cases that were tried with this verdict.
    fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Tried> {
        let cases = self.tried.iter();
        cases.filter(move |case| case.verdict == verdict)
    }

    fn accepts_none(&self) -> bool {
        let mut right = self.with(Verdict::Right);
        right.all(|case| case.expected != Expected::Accepted)
    }

    /// For people: every case or how many there are of each kind, then what is wrong and why, then
    /// the verdict.
    pub(crate) fn words(&self, verbose: bool) -> String {
        let problem = self.problem.iter().cloned();
        if !self.answered {
            let end = format!("FAIL: nothing answered at {}\n", self.url);
            return problem.chain([end]).collect::<Vec<_>>().join("\n");
        }
        let mut lines = if verbose { self.table() } else { self.kinds() };
        let mut said = None;
        for case in self.with(Verdict::Wrong) {
            // That nothing genuine is accepted has one reason, which is said below.
            if self.accepts_none() && case.expected == Expected::Accepted {
                continue;
            }
            // The same reason for one case after another is said once, above them.
            if said != case.why {
                lines.extend([String::new(), case.why.unwrap_or_default().to_owned()]);
            }
            said = case.why;
            let (name, expected, got) = (&case.name, case.expected.words(), &case.got);
            let wrong = case.verdict.words();
            lines.push(format!("  {wrong}  {name}: expected {expected}, got {got}"));
        }
        lines.extend(problem.flat_map(|problem| [String::new(), problem]));
        let [right, wrong, optional] = VERDICTS.map(|verdict| self.with(verdict).count());
        let not_tried = self.cases.len() - self.tried.len();
        let verdict = if self.exit_code() == 0 {
            "PASS"
        } else {
            "FAIL"
        };
        let slowest = self.slowest.as_secs_f64() * 1000.0;
        lines.push(format!(
            "\n{verdict}: {right} right, {wrong} wrong, {optional} optional, {not_tried} not tried; \
             slowest answer {slowest:.1} ms\n"
        ));
        lines.join("\n")
    }

    /// A line for each case.
    fn table(&self) -> Vec<String> {
        let widths = self.tried.iter().map(|case| case.got.len());
        let width = widths.max().unwrap_or(3);
        let head = format!("{:30} {:10} {:width$} verdict", "case", "expected", "got");
        let cases = self.tried.iter().map(|case| {
            let (name, expected, got) = (&case.name, case.expected.words(), &case.got);
            let verdict = case.verdict.words();
            format!("{name:30} {expected:10} {got:width$} {verdict}")
        });
        iter::once(head).chain(cases).collect()
    }

    /// A line for each kind of cases.
    fn kinds(&self) -> Vec<String> {
        let kinds = [
            ("genuine events", Expected::Accepted),
            ("forged events", Expected::Rejected),
            ("unusual events", Expected::Either),
        ];
        let kinds = kinds.map(|(kind, expected)| {
            let counts = VERDICTS.map(|verdict| {
                let kin = self.with(verdict).filter(|case| case.expected == expected);
                let count = kin.count();
                Some(format!("{count:4} {}", verdict.words())).filter(|_| count > 0)
            });
            let counts: String = counts.into_iter().flatten().collect();
            format!("{kind:14}  expected {:10}{counts}", expected.words())
        });
        kinds.into()
    }
}

impl Case {
    fn judge(self, outcomes: &[Outcome]) -> Tried {
        let why = outcomes.iter().find_map(|outcome| self.fault(*outcome));
        let got = outcomes.iter().map(|outcome| match outcome {
            Outcome::Status(status) => status.to_string(),
            Outcome::Late(limit) => format!("no answer in {} s", limit.as_secs_f64()),
            Outcome::Closed => "closed without an answer".to_owned(),
        });
        Tried {
            got: got.collect::<Vec<_>>().join(", "),
            verdict: match (why, self.expected) {
                (Some(_), _) => Verdict::Wrong,
                (None, Expected::Either) => Verdict::Optional,
                (None, _) => Verdict::Right,
            },
            name: self.name,
            expected: self.expected,
            why,
        }
    }

    /// Why an outcome is wrong, if it is.
    fn fault(&self, outcome: Outcome) -> Option<&'static str> {
        use Expected::{Accepted, Either, Rejected};
        match (self.expected, outcome) {
            (_, Outcome::Late(_)) => Some(LATE),
            (Accepted | Either, Outcome::Status(200..=299))
            | (Rejected | Either, Outcome::Status(400..=499)) => None,
            (Rejected, Outcome::Status(200..=299)) | (Accepted, _) => Some(self.why),
            (Rejected | Either, Outcome::Status(500..)) => Some(CRASH),
            (Rejected | Either, Outcome::Closed) => Some(CLOSED),
            (Rejected | Either, Outcome::Status(_)) => Some(NEITHER),
        }
    }
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "WRONG",
            Self::Optional => "optional",
        }
    }
}

impl Expected {
    fn words(self) -> &'static str {
        match self {
            Self::Accepted => "2xx",
            Self::Rejected => "4xx",
            Self::Either => "2xx or 4xx",
        }
    }
}
