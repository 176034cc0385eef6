//! Bodies of events: DT's published ones, made new.
//!
//! A body is changed as text, not as a parsed value: everything else stays as it was published,
//! the order of the keys included.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use clap::ValueEnum;

use crate::xid::Ids;

/// The types of event that a Data Connector sends.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "camelCase")]
pub(crate) enum EventType {
    Touch,
    Temperature,
    ObjectPresent,
    Humidity,
    ObjectPresentCount,
    TouchCount,
    WaterPresent,
    NetworkStatus,
    BatteryStatus,
    LabelsChanged,
    ConnectionStatus,
    EthernetStatus,
    CellularStatus,
    Co2,
    Pressure,
    Motion,
    DeskOccupancy,
    Contact,
    ProbeWireStatus,
}

/// Where bodies come from.
#[derive(Debug)]
pub(crate) struct Source {
    types: Vec<EventType>,
    fixed: Option<Bytes>,
    ids: Ids,
}

impl Source {
    /// Bodies of these types in turn, of every type if none is given; or always the `fixed` one.
    pub(crate) fn new(mut types: Vec<EventType>, fixed: Option<Bytes>) -> Self {
        if types.is_empty() {
            types.extend(EventType::value_variants());
        }
        Self {
            types,
            fixed,
            ids: Ids::new(),
        }
    }

    /// The body of the event with this number.
    pub(crate) fn body(&self, number: u32) -> Bytes {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let number = number as usize;
        let types = self.types.len();
        let event_type = self.types[number % types];
        let now = SystemTime::now();
        event_type.event(number / types, now, &self.ids.next(now))
    }
}

impl EventType {
    /// The event with this number of its type.
    fn event(self, number: usize, now: SystemTime, id: &str) -> Bytes {
        let mut json = self.published().to_owned();
        let time = quoted(&humantime::format_rfc3339_micros(now).to_string());
        set(&mut json, "eventId", &quoted(id));
        for key in ["timestamp", "updateTime", "sampleTime"] {
            set(&mut json, key, &time);
        }
        for (key, value) in self.reading(number, now) {
            set(&mut json, key, &value);
        }
        json.into()
    }

    /// What a sensor reads: measurements drift up and down within the hour, totals rise.
    fn reading(self, number: usize, now: SystemTime) -> Vec<(&'static str, String)> {
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |now| now.as_secs_f64());
        let wave = (seconds / 600.0).sin() + (fastrand::f64() - 0.5) / 10.0;
        let percent = |middle: f64, swing: f64| (middle + swing * wave).round();
        let total = |start: usize| (start + number).to_string();
        match self {
            Self::Touch | Self::LabelsChanged | Self::EthernetStatus => vec![],
            Self::Temperature => vec![("value", celsius(wave))],
            Self::Humidity => vec![
                ("temperature", celsius(wave)),
                ("relativeHumidity", percent(40.0, 15.0).to_string()),
            ],
            Self::ObjectPresentCount => vec![("total", total(4176))],
            Self::TouchCount => vec![("total", total(469))],
            Self::NetworkStatus => vec![
                ("signalStrength", percent(50.0, 30.0).to_string()),
                ("rssi", percent(-83.0, 15.0).to_string()),
                (
                    "transmissionMode",
                    one_of(&["LOW_POWER_STANDARD_MODE", "HIGH_POWER_BOOST_MODE"]),
                ),
            ],
            Self::BatteryStatus => vec![("percentage", (100 - number / 1000 % 100).to_string())],
            Self::ConnectionStatus => vec![("connection", one_of(&["ETHERNET", "CELLULAR"]))],
            Self::CellularStatus => vec![("signalStrength", percent(75.0, 15.0).to_string())],
            Self::Co2 => vec![("ppm", percent(700.0, 250.0).to_string())],
            Self::Pressure => vec![("pascal", percent(99_300.0, 900.0).to_string())],
            Self::ObjectPresent | Self::WaterPresent => {
                vec![("state", one_of(&["PRESENT", "NOT_PRESENT"]))]
            }
            Self::Motion => vec![("state", one_of(&["MOTION_DETECTED", "NO_MOTION_DETECTED"]))],
            Self::DeskOccupancy => vec![("state", one_of(&["OCCUPIED", "NOT_OCCUPIED"]))],
            Self::Contact => vec![("state", one_of(&["OPEN", "CLOSED"]))],
            Self::ProbeWireStatus => {
                vec![("state", one_of(&["TWO_WIRE", "THREE_WIRE", "FOUR_WIRE"]))]
            }
        }
    }

    fn published(self) -> &'static str {
        match self {
            Self::Touch => include_str!("../events/touch.json"),
            Self::Temperature => include_str!("../events/temperature.json"),
            Self::ObjectPresent => include_str!("../events/objectPresent.json"),
            Self::Humidity => include_str!("../events/humidity.json"),
            Self::ObjectPresentCount => include_str!("../events/objectPresentCount.json"),
            Self::TouchCount => include_str!("../events/touchCount.json"),
            Self::WaterPresent => include_str!("../events/waterPresent.json"),
            Self::NetworkStatus => include_str!("../events/networkStatus.json"),
            Self::BatteryStatus => include_str!("../events/batteryStatus.json"),
            Self::LabelsChanged => include_str!("../events/labelsChanged.json"),
            Self::ConnectionStatus => include_str!("../events/connectionStatus.json"),
            Self::EthernetStatus => include_str!("../events/ethernetStatus.json"),
            Self::CellularStatus => include_str!("../events/cellularStatus.json"),
            Self::Co2 => include_str!("../events/co2.json"),
            Self::Pressure => include_str!("../events/pressure.json"),
            Self::Motion => include_str!("../events/motion.json"),
            Self::DeskOccupancy => include_str!("../events/deskOccupancy.json"),
            Self::Contact => include_str!("../events/contact.json"),
            Self::ProbeWireStatus => include_str!("../events/probeWireStatus.json"),
        }
    }
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

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn one_of(texts: &[&str]) -> String {
    quoted(texts[fastrand::usize(..texts.len())])
}

/// A temperature around 22 °C, in the sensors' steps of 0.05 °C.
fn celsius(wave: f64) -> String {
    ((440.0 + 60.0 * wave).round() / 20.0).to_string()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;
    use std::time::Duration;

    const ID: &str = "cpbg96qngr7ai7ldarrg";
    const TIME: &str = "2025-11-23T12:13:20.000042Z";

    fn event(event_type: EventType, number: usize) -> String {
        let now = UNIX_EPOCH + Duration::from_micros(1_763_900_000_000_042);
        String::from_utf8(event_type.event(number, now, ID).into()).unwrap()
    }

    /// Every key, in its order.
    fn keys(json: &str) -> Vec<&str> {
        let parts: Vec<&str> = json.split('"').collect();
        parts
            .windows(2)
            .filter(|pair| pair[1].starts_with(':'))
            .map(|pair| pair[0])
            .collect()
    }

    /// The keys whose values differ.
    fn differences(left: &Value, right: &Value, key: &str, found: &mut BTreeSet<String>) {
        match (left, right) {
            (Value::Object(left), Value::Object(right)) => {
                for (key, value) in left {
                    differences(value, &right[key], key, found);
                }
            }
            (Value::Array(left), Value::Array(right)) => {
                assert_eq!(left.len(), right.len());
                for (left, right) in left.iter().zip(right) {
                    differences(left, right, key, found);
                }
            }
            _ if left != right => {
                found.insert(key.to_owned());
            }
            _ => {}
        }
    }

    #[test]
    fn an_event_is_the_published_one_but_for_what_is_new() {
        let new = ["eventId", "timestamp", "updateTime", "sampleTime"];
        for event_type in EventType::value_variants() {
            let published = event_type.published();
            let reading = event_type.reading(0, UNIX_EPOCH).into_iter();
            let may_differ: BTreeSet<_> = reading
                .map(|(key, _)| key)
                .chain(new)
                .map(str::to_owned)
                .collect();
            // States are picked at random.
            for number in 0..50 {
                let event = event(*event_type, number);
                assert_eq!(keys(&event), keys(published));
                let mut differ = BTreeSet::new();
                differences(
                    &serde_json::from_str(published).unwrap(),
                    &serde_json::from_str(&event).unwrap(),
                    "",
                    &mut differ,
                );
                assert!(differ.is_subset(&may_differ), "{differ:?} in {event}");
                assert!(event.contains(&format!(r#""eventId":"{ID}""#)), "{event}");
                assert!(
                    event.contains(&format!(r#""timestamp":"{TIME}""#)),
                    "{event}"
                );
                let times = published.matches("Time\":").count() + 1;
                assert_eq!(event.matches(TIME).count(), times, "{event}");
            }
        }
    }

    #[test]
    fn readings_change() {
        assert!(event(EventType::TouchCount, 7).contains(r#""total":476,"#));
        assert!(event(EventType::BatteryStatus, 12_345).contains(r#""percentage":88,"#));
        let temperatures: BTreeSet<_> = (0..50)
            .map(|number| event(EventType::Temperature, number))
            .collect();
        assert!(temperatures.len() > 1);
    }

    #[test]
    fn types_take_turns() {
        let source = Source::new(vec![EventType::Touch, EventType::Co2], None);
        for (number, event_type) in [(0, "touch"), (1, "co2"), (2, "touch")] {
            let event: Value = serde_json::from_slice(&source.body(number)).unwrap();
            assert_eq!(event["event"]["eventType"], event_type);
        }
    }
}
