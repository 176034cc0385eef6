//! Bodies of events: DT's published ones, made new.
//!
//! A body is changed as text, not as a parsed value: everything else stays as it was published,
//! the order of the keys included.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::random::{fraction, id};

macro_rules! published {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("../events/", $name, ".json")))),*] };
}

/// The types of event that a Data Connector sends, each with a published event.
pub(crate) const TYPES: [(&str, &str); 19] = published! {
    "touch" "temperature" "objectPresent" "humidity" "objectPresentCount" "touchCount"
    "waterPresent" "networkStatus" "batteryStatus" "labelsChanged" "connectionStatus"
    "ethernetStatus" "cellularStatus" "co2" "pressure" "motion" "deskOccupancy" "contact"
    "probeWireStatus"
};

/// A published event as if a sensor had just sent it.
pub(crate) fn renewed(published: &str) -> String {
    let mut json = published.to_owned();
    set(&mut json, "eventId", &format!("\"{}\"", id()));
    let time = format!("\"{}\"", rfc3339(SystemTime::now()));
    for key in ["timestamp", "updateTime", "sampleTime"] {
        set(&mut json, key, &time);
    }
    // From 20 to 24 °C, in the sensors' steps of 0.05 °C.
    let celsius = (400.0 + 80.0 * fraction()).round() / 20.0;
    set(&mut json, "value", &celsius.to_string());
    json
}

/// Sets the string or number at every `key` of compact JSON whose strings hold no `,`, `}` or `]`
/// there.
pub(crate) fn set(json: &mut String, key: &str, value: &str) {
    let key = format!("\"{key}\":");
    let mut from = 0;
    while let Some(found) = json[from..].find(&key) {
        let start = from + found + key.len();
        let length = json[start..].find([',', '}', ']']).unwrap_or(0);
        json.replace_range(start..start + length, value);
        from = start + value.len();
    }
}

/// The time since the beginning of 1970, which none is before.
pub(crate) fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As DT writes a time: `2024-05-29T10:34:03.970415Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = since_1970(time);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years are counted from March, so that a leap day is the last one.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = 400 * era + year + next_year;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_published_one_but_for_what_is_new() {
        for (name, published) in TYPES {
            let (mut old, mut new) = (published.to_owned(), renewed(published));
            let json: serde_json::Value = serde_json::from_str(&new).unwrap();
            assert_eq!(json["event"]["eventType"], name);
            for key in ["eventId", "timestamp"] {
                assert!(!published.contains(json["event"][key].as_str().unwrap()));
            }
            for key in ["eventId", "timestamp", "updateTime", "sampleTime", "value"] {
                set(&mut old, key, "0");
                set(&mut new, key, "0");
            }
            assert_eq!(old, new);
        }
    }

    #[test]
    fn times_are_right_around_a_leap_day() {
        for (seconds, time) in [
            (1_709_251_199, "2024-02-29T23:59:59.000042Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000042Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000042Z"),
        ] {
            let since = Duration::new(seconds, 42_000);
            assert_eq!(rfc3339(UNIX_EPOCH + since), time);
        }
    }
}
