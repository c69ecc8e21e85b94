//! When the alarms of template.yaml go off: their metric math, evaluated here. The local AWS does not support it.

use crate::template::{alarms, metrics_of, properties, template, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Evaluates an expression of `CloudWatch`'s metric math that consists of numbers, metrics, `+ - * /`, `>=`,
/// parentheses and `IF`. It has no value if a metric has none, or after a division by zero.
struct Expression<'a> {
    rest: &'a str,
    metrics: &'a BTreeMap<&'a str, Option<f64>>,
}

impl Expression<'_> {
    fn take(&mut self, symbol: &str) -> bool {
        let rest = self.rest.trim_start();
        let after = rest.strip_prefix(symbol);
        self.rest = after.unwrap_or(rest);
        after.is_some()
    }

    fn word(&mut self) -> &str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        self.rest = after;
        word
    }

    fn comparison(&mut self) -> Option<f64> {
        let left = self.sum();
        if !self.take(">=") {
            return left;
        }
        let right = self.sum();
        Some(if left? >= right? { 1.0 } else { 0.0 })
    }

    fn sum(&mut self) -> Option<f64> {
        let mut left = self.product();
        loop {
            if self.take("+") {
                left = self.product().and_then(|right| Some(left? + right));
            } else if self.take("-") {
                left = self.product().and_then(|right| Some(left? - right));
            } else {
                return left;
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut left = self.operand();
        loop {
            if self.take("*") {
                left = self.operand().and_then(|right| Some(left? * right));
            } else if self.take("/") {
                left = self.operand().filter(|right| *right != 0.0).and_then(|right| Some(left? / right));
            } else {
                return left;
            }
        }
    }

    fn operand(&mut self) -> Option<f64> {
        if self.take("(") {
            let value = self.comparison();
            assert!(self.take(")"), "a parenthesis is not closed before {}", self.rest);
            return value;
        }
        if self.take("IF(") {
            let condition = self.comparison();
            assert!(self.take(","));
            let then = self.comparison();
            assert!(self.take(","));
            let otherwise = self.comparison();
            assert!(self.take(")"));
            return if condition? == 0.0 { otherwise } else { then };
        }
        let metrics = self.metrics;
        let word = self.word();
        word.parse().ok().or_else(|| *metrics.get(word).unwrap_or_else(|| panic!("no metric {word}")))
    }
}

/// Resolves a reference to a parameter to its default.
fn resolved(value: &Value, template: &Value) -> String {
    let reference = |name: &str| template["Parameters"][name]["Default"].to_string();
    if let Some(name) = value["Ref"].as_str() {
        return reference(name);
    }
    let Some(written) = value["Fn::Sub"].as_str() else { return value.to_string().trim_matches('"').to_owned() };
    let names = template["Parameters"].as_object().expect("parameters").keys();
    names.fold(written.to_owned(), |text, name| text.replace(&format!("${{{name}}}"), &reference(name)))
}

/// Whether a datapoint of an alarm with metric math breaches its threshold. `sums` are the values of its metrics
/// in one period, by id. A metric without a value has no data.
fn breaches(template: &Value, alarm: &str, sums: &[(&str, Option<f64>)]) -> bool {
    let alarm = properties(template, alarm);
    let queries = alarm["Metrics"].as_array().expect("metrics");
    let expression = queries.iter().find_map(|query| query.get("Expression")).expect("an expression");
    let expression = resolved(expression, template);
    let metrics = sums.iter().copied().collect();
    let mut reader = Expression { rest: &expression, metrics: &metrics };
    let value = reader.comparison();
    assert_eq!(reader.rest.trim(), "", "not read: {expression}");
    assert_eq!(alarm["ComparisonOperator"], "GreaterThanOrEqualToThreshold");
    assert_eq!(alarm["TreatMissingData"], "notBreaching");
    let threshold: f64 = resolved(&alarm["Threshold"], template).parse().expect("a number");
    value.is_some_and(|value| value >= threshold)
}

#[test]
fn alarms_go_off_for_shares_of_requests_and_not_for_counts() {
    let template = template();
    let all = |alarm, affected: (&'static str, f64), of: (&'static str, f64)| {
        breaches(&template, alarm, &[(affected.0, Some(affected.1)), (of.0, Some(of.1))])
    };
    // Five minutes at 2,000 requests per second, and one client whose batch fails on each of three attempts.
    let busy = 600_000.0;
    for (alarm, affected, of) in [
        ("ServerFaultsAlarm", "failed", "requests"),
        ("Gateway5xxAlarm", "failed", "requests"),
        ("GatewayThrottlesAlarm", "throttled", "requests"),
        ("FunctionErrorsAlarm", "failed", "invocations"),
        ("FunctionThrottlesAlarm", "throttled", "requests"),
        ("CompletionFailuresAlarm", "failed", "requests"),
        ("LimiterFailuresAlarm", "failed", "requests"),
        ("StateWriteThrottlesAlarm", "throttled", "requests"),
        ("StateReadThrottlesAlarm", "throttled", "requests"),
        ("KeyReadThrottlesAlarm", "throttled", "requests"),
    ] {
        assert!(!all(alarm, (affected, 3.0), (of, busy)), "{alarm} pages for 0.0005 %");
        assert!(!all(alarm, (affected, busy * 0.0099), (of, busy)), "{alarm}");
        assert!(all(alarm, (affected, busy * 0.01), (of, busy)), "{alarm}");
        // A canary gets a tenth of the requests. One that always fails affects 2 % of five minutes' requests
        // after one minute.
        assert!(all(alarm, (affected, busy * 0.02), (of, busy)), "{alarm}");
        assert!(!breaches(&template, alarm, &[(affected, None), (of, Some(busy))]), "{alarm}: no data is good");
    }
    // A stack with little traffic: a single failure is none, a batch that fails on each attempt is one.
    for (alarm, of, least) in [
        ("ServerFaultsAlarm", "requests", 3.0),
        ("FunctionErrorsAlarm", "invocations", 3.0),
        ("Gateway5xxAlarm", "requests", 10.0),
    ] {
        assert!(!all(alarm, ("failed", least - 1.0), (of, 20.0)), "{alarm}");
        assert!(all(alarm, ("failed", least), (of, 20.0)), "{alarm}");
    }
}

/// A message leaves the age of the oldest message once it was received three times, and reaches the dead-letter
/// queue only after `MaxReceiveCount` deliveries.
#[test]
fn an_alarm_goes_off_if_consumers_receive_messages_and_do_not_delete_them() {
    let template = template();
    let failing = |received, deleted| {
        breaches(&template, "FailingMessagesAlarm", &[("received", Some(received)), ("deleted", Some(deleted))])
    };
    assert!(failing(300.0, 0.0), "no delivery succeeds");
    assert!(failing(300.0, 270.0), "a tenth fails");
    assert!(!failing(300.0, 271.0));
    assert!(!failing(300.0, 350.0), "more are deleted than received: those received before");
    assert!(!failing(9.0, 0.0), "too few to tell from messages that are being consumed");
    assert_eq!(properties(&template, "FailingMessagesAlarm")["EvaluationPeriods"], 3, "a slow message is none");
}

/// `CloudWatch` accepts an expression only if its metrics exist under these names and have one period.
#[test]
fn every_metric_of_an_expression_is_used_and_has_the_period_of_the_others() {
    let template = template();
    let mut with_math = 0;
    for (name, alarm) in alarms(&template) {
        let Some(queries) = alarm["Properties"]["Metrics"].as_array() else { continue };
        with_math += 1;
        assert_eq!(alarm["Condition"], "OnAws", "{name}: the local AWS refuses metric math");
        assert!(
            alarm["Properties"].get("MetricName").is_none() && alarm["Properties"].get("Period").is_none(),
            "{name}"
        );
        let returned: Vec<_> = queries.iter().filter(|query| query["ReturnData"] != false).collect();
        let [result] = returned.as_slice() else { panic!("{name} must return one result") };
        let expression = resolved(&result["Expression"], &template);
        let mut periods = Vec::new();
        for query in queries.iter().filter(|query| query["ReturnData"] == false) {
            let id = text(&query["Id"]);
            assert!(id.starts_with(|c: char| c.is_ascii_lowercase()) && expression.contains(id), "{name}: {id}");
            periods.push(&query["MetricStat"]["Period"]);
        }
        periods.dedup();
        assert_eq!(periods.len(), 1, "{name}");
        assert_eq!(metrics_of(&alarm).len(), queries.len() - 1, "{name}");
        let threshold = &alarm["Properties"]["Threshold"];
        let own = (name == "FailingMessagesAlarm").then(|| json!(10));
        assert_eq!(threshold, &own.unwrap_or_else(|| json!({ "Ref": "AlarmPercent" })), "{name}");
    }
    assert_eq!(with_math, 11);
}
