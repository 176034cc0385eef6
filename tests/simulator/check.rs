//! Whether a receiver is right: each case tried, judged and reported.

use std::fmt::{self, Display};
use std::time::Duration;

use axum::http::Uri;
use hmac::digest::InvalidLength;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::cases::{self, Case, Expected};
use crate::endpoint::unreachable;
use crate::exchange::Connection;

/// How long the whole check goes on, in limits of an answer.
const LIMITS: u32 = 12;

const LATE: &str = "A Data Connector counts an answer that takes longer than 10 s as none, and \
                    sends the event again: keep the event, answer, and do the work afterwards.";
const CRASH: &str = "Answer a refusal with a 4xx rather than a crash's 5xx: here anybody can make \
                     the receiver fail, and its real faults look the same.";
const NEITHER: &str = "That neither accepts nor refuses: is there a proxy or a login page before \
                       the receiver?";

/// What came of a request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Status(u16),
    Late(Duration),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Right,
    Wrong,
    EitherWay,
}

/// A case that was tried.
#[derive(Debug, Serialize)]
struct Tried {
    case: String,
    expected: Expected,
    got: String,
    verdict: Verdict,
    why: Option<&'static str>,
}

/// What the check found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    url: String,
    right: usize,
    wrong: usize,
    either_way: usize,
    not_tried: usize,
    /// Why the check ended before its end, or what is wrong with all of it.
    problem: Option<String>,
    slowest_ms: f64,
    cases: Vec<Tried>,
}

/// A check of one receiver.
#[derive(Debug)]
pub(crate) struct Check {
    url: Uri,
    limit: Duration,
    cases: Vec<Case>,
}

impl Check {
    /// Of the receiver at `url`, whose every answer may take until `limit`.
    pub(crate) fn new(url: Uri, secret: &str, limit: Duration) -> Result<Self, InvalidLength> {
        let cases = cases::all(&url, secret)?;
        Ok(Self { url, limit, cases })
    }

    /// What to know before it runs.
    pub(crate) fn warning(&self) -> String {
        let events = |expected: Expected| {
            let cases = self.cases.iter().filter(|case| case.expected == expected);
            cases.map(|case| case.requests.len()).sum::<usize>()
        };
        format!(
            "This delivers {} invented events to {}, which takes them for real ones, and {} \
             forged or unusual ones.",
            events(Expected::Accepted),
            self.url,
            events(Expected::Refused) + events(Expected::Either),
        )
    }

    /// Tries one case after another, so that what one does to the receiver is not another's fault.
    pub(crate) async fn run(self) -> Report {
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut tried = Vec::new();
        let mut problem = None;
        let all = self.cases.len();
        for case in self.cases {
            if begun.elapsed() >= LIMITS * self.limit {
                problem = Some(format!(
                    "The check ended after {} s, with cases left: the receiver is too slow.",
                    begun.elapsed().as_secs()
                ));
                break;
            }
            match case.ask(&self.url, self.limit, &mut slowest).await {
                Ok((answers, connections)) => tried.push(case.judge(&answers, connections)),
                Err(unreachable) => {
                    problem = Some(unreachable);
                    break;
                }
            }
        }
        let count = |verdict| tried.iter().filter(|case| case.verdict == verdict).count();
        let accepts = tried.iter().any(|case| {
            matches!(case.expected, Expected::Accepted) && case.verdict == Verdict::Right
        });
        if !accepts && !tried.is_empty() && problem.is_none() {
            problem = Some(
                "No genuine event was accepted, so that the refusals prove nothing: is the secret \
                 the receiver's, and is the URL right?"
                    .to_owned(),
            );
        }
        Report {
            url: self.url.to_string(),
            right: count(Verdict::Right),
            wrong: count(Verdict::Wrong),
            either_way: count(Verdict::EitherWay),
            not_tried: all - tried.len(),
            problem,
            slowest_ms: (slowest.as_secs_f64() * 1e4).round() / 10.0,
            cases: tried,
        }
    }
}

impl Case {
    /// The answers up to the first that did not come, and how many connections they took.
    async fn ask(
        &self,
        url: &Uri,
        limit: Duration,
        slowest: &mut Duration,
    ) -> Result<(Vec<Answer>, usize), String> {
        let mut answers = Vec::new();
        let mut connections = 0;
        let mut kept = None;
        for request in &self.requests {
            let again = kept.is_some();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => open(url, limit, &mut connections).await?,
            };
            let mut sent = Instant::now();
            let mut answer = timeout(limit, connection.ask(request)).await;
            // A receiver may close a connection between two requests without saying so before.
            if again && matches!(answer, Ok(Err(_))) {
                connection = open(url, limit, &mut connections).await?;
                sent = Instant::now();
                answer = timeout(limit, connection.ask(request)).await;
            }
            *slowest = sent.elapsed().max(*slowest);
            answers.push(match answer {
                Ok(Ok(answer)) => Answer::Status(answer.status),
                Ok(Err(_)) => Answer::Nothing,
                Err(_) => Answer::Late(limit),
            });
            match answer {
                Ok(Ok(answer)) if self.kept && answer.keeps => kept = Some(connection),
                Ok(Ok(_)) => {}
                _ => break,
            }
        }
        Ok((answers, connections))
    }

    fn judge(self, answers: &[Answer], connections: usize) -> Tried {
        let why = answers.iter().find_map(|answer| self.fault(*answer));
        let verdict = match (why, self.expected) {
            (Some(_), _) => Verdict::Wrong,
            (None, Expected::Either) => Verdict::EitherWay,
            (None, _) => Verdict::Right,
        };
        let answers: Vec<_> = answers.iter().map(ToString::to_string).collect();
        let mut got = answers.join(", ");
        if self.kept && connections > 1 {
            got.push_str(" (closes connections)");
        }
        Tried {
            case: self.name,
            expected: self.expected,
            got,
            verdict,
            why,
        }
    }

    /// Why an answer is wrong, if it is.
    fn fault(&self, answer: Answer) -> Option<&'static str> {
        use Expected::{Accepted, Either, Refused};
        match (self.expected, answer) {
            (_, Answer::Late(_)) => Some(LATE),
            (Accepted | Either, Answer::Status(200..=299))
            | (Refused | Either, Answer::Status(400..=499)) => None,
            (Refused, Answer::Status(200..=299)) | (Accepted, _) => Some(self.why),
            (Refused | Either, Answer::Status(500..) | Answer::Nothing) => Some(CRASH),
            (Refused | Either, Answer::Status(_)) => Some(NEITHER),
        }
    }
}

async fn open(url: &Uri, limit: Duration, count: &mut usize) -> Result<Connection, String> {
    *count += 1;
    match timeout(limit, Connection::open(url)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => {
            let refusal = unreachable(error.as_ref());
            let advice = refusal.advice.unwrap_or_default();
            Err(format!("{}. {advice}", refusal.text))
        }
        Err(_) => Err(format!(
            "No connection within {} s: are the host and the port the receiver's?",
            limit.as_secs_f64()
        )),
    }
}

impl Report {
    /// Whether everything was tried and nothing is wrong.
    pub(crate) fn nothing_wrong(&self) -> bool {
        self.wrong == 0 && self.not_tried == 0
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.cases.is_empty() {
            let cases = self.cases.iter();
            let width = cases.map(|case| case.got.len()).max().unwrap_or_default();
            let width = width.max("got".len());
            writeln!(
                f,
                "{:<30}  {:<10}  {:<width$}  verdict",
                "case", "expected", "got"
            )?;
            let mut said = None;
            for case in &self.cases {
                writeln!(
                    f,
                    "{:<30}  {:<10}  {:<width$}  {}",
                    case.case, case.expected, case.got, case.verdict
                )?;
                // The same reason for one case after another is said once.
                if let Some(why) = case.why
                    && said != case.why
                {
                    writeln!(f, "    {why}")?;
                }
                said = case.why;
            }
            writeln!(f)?;
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "{problem}")?;
        }
        if self.cases.is_empty() {
            return Ok(());
        }
        write!(
            f,
            "{} right, {} wrong, {} either way",
            self.right, self.wrong, self.either_way
        )?;
        if self.not_tried > 0 {
            write!(f, ", {} not tried", self.not_tried)?;
        }
        writeln!(f, "; the slowest answer took {} ms", self.slowest_ms)
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Late(limit) => write!(f, "no answer in {} s", limit.as_secs_f64()),
            Self::Nothing => f.write_str("closed without an answer"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Right => "right",
            Self::Wrong => "WRONG",
            Self::EitherWay => "either way",
        })
    }
}
