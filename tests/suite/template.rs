//! The contents of template.yaml, and its agreement with the code and the docs.

use event_ingest::config::Config;
use event_ingest::deadline::FUNCTION_TIMEOUT;
use event_ingest::telemetry::{METRICS, NAMESPACE};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use yaml_serde::Value as Yaml;

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The template, with its tags in the long form: `!Ref X` becomes `{"Ref": "X"}`.
fn template() -> Value {
    to_json(yaml_serde::from_str(&read("template.yaml")).expect("YAML"))
}

fn to_json(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Sequence(items) => items.into_iter().map(to_json).collect(),
        Yaml::Mapping(members) => {
            let member = |(name, value)| (to_json(name).as_str().expect("a name").to_owned(), to_json(value));
            Value::Object(members.into_iter().map(member).collect())
        }
        Yaml::Tagged(tagged) => {
            let name = tagged.tag.to_string().trim_start_matches('!').to_owned();
            let name = if name == "Ref" { name } else { format!("Fn::{name}") };
            json!({ name: to_json(tagged.value) })
        }
        scalar => serde_json::to_value(scalar).expect("a scalar"),
    }
}

fn resources_of(template: &Value, kind: &str) -> Vec<(String, Value)> {
    let resources = template["Resources"].as_object().expect("resources");
    let of_kind = resources.iter().filter(|(_, resource)| resource["Type"] == kind);
    of_kind.map(|(name, resource)| (name.clone(), resource.clone())).collect()
}

fn properties<'a>(template: &'a Value, resource: &str) -> &'a Value {
    &template["Resources"][resource]["Properties"]
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

/// The JSON of the dashboard. Most variables of `!Sub` are not replaced.
fn dashboard(template: &Value) -> Value {
    let body = text(&properties(template, "Dashboard")["DashboardBody"]["Fn::Sub"]);
    serde_json::from_str(&body.replace("${OldestMessageSeconds}", "900")).expect("JSON")
}

/// The namespace, name, and dimension of every metric on the dashboard.
fn dashboard_metrics(template: &Value) -> Vec<[String; 4]> {
    let dashboard = dashboard(template);
    let widgets = dashboard["widgets"].as_array().expect("widgets");
    let metrics = widgets.iter().filter_map(|widget| widget["properties"]["metrics"].as_array()).flatten();
    metrics.map(|metric| [0, 1, 2, 3].map(|index| text(&metric[index]).to_owned())).collect()
}

#[test]
fn alarms_and_the_dashboard_use_all_metrics_of_the_function_and_no_others() {
    let template = template();
    let mut own = Vec::new();
    for (name, alarm) in resources_of(&template, "AWS::CloudWatch::Alarm") {
        let alarm = &alarm["Properties"];
        if alarm["Namespace"] == NAMESPACE {
            let dimensions = json!([{ "Name": "FunctionName", "Value": { "Ref": "Function" } }]);
            assert_eq!(alarm["Dimensions"], dimensions, "{name}");
            own.push(text(&alarm["MetricName"]).to_owned());
        }
    }
    for [namespace, metric, dimension, value] in dashboard_metrics(&template) {
        if namespace == NAMESPACE {
            assert_eq!((dimension.as_str(), value.as_str()), ("FunctionName", "${Function}"), "{metric}");
            own.push(metric);
        }
    }
    for metric in &own {
        assert!(METRICS.contains(&metric.as_str()), "the function has no metric {metric}");
    }
    for metric in METRICS {
        assert!(own.iter().any(|shown| shown == metric), "no alarm and no graph uses {metric}");
    }
}

/// The metrics of AWS that the template uses: namespace, dimension, and names, according to these pages of
/// <https://docs.aws.amazon.com>:
///
/// - `apigateway/latest/developerguide/http-api-metrics.html`. The names differ from those of REST APIs.
/// - `lambda/latest/dg/monitoring-metrics-types.html`
/// - `AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html`
/// - `amazondynamodb/latest/developerguide/metrics-dimensions.html`
/// - `AmazonCloudWatch/latest/logs/CloudWatch-Logs-Monitoring-CloudWatch-Metrics.html`
const AWS_METRICS: [(&str, &str, &[&str]); 5] = [
    ("AWS/ApiGateway", "ApiId", &["4xx", "5xx", "Count", "Latency"]),
    ("AWS/Lambda", "FunctionName", &["ConcurrentExecutions", "Duration", "Errors", "Invocations", "Throttles"]),
    (
        "AWS/SQS",
        "QueueName",
        &[
            "ApproximateAgeOfOldestMessage",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesVisible",
            "NumberOfMessagesDeleted",
            "NumberOfMessagesSent",
        ],
    ),
    (
        "AWS/DynamoDB",
        "TableName",
        &["ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits", "ReadThrottleEvents", "WriteThrottleEvents"],
    ),
    ("AWS/Logs", "LogGroupName", &["IncomingBytes"]),
];

/// `CloudWatch` accepts an alarm on a metric that does not exist, and the alarm then never changes its state.
#[test]
fn the_metrics_of_aws_exist() {
    let template = template();
    let alarms = resources_of(&template, "AWS::CloudWatch::Alarm").into_iter().map(|(_, alarm)| {
        let [dimension] = alarm["Properties"]["Dimensions"].as_array().expect("dimensions").as_slice() else {
            panic!("one dimension: {alarm}")
        };
        [&alarm["Properties"]["Namespace"], &alarm["Properties"]["MetricName"], &dimension["Name"]]
            .map(|value| text(value).to_owned())
    });
    let shown = dashboard_metrics(&template).into_iter().map(|[namespace, metric, name, _]| [namespace, metric, name]);
    let used: BTreeSet<_> = alarms.chain(shown).filter(|[namespace, ..]| namespace != NAMESPACE).collect();
    let documented = AWS_METRICS.iter().flat_map(|(namespace, dimension, metrics)| {
        metrics.iter().map(|metric| [*namespace, *metric, *dimension].map(str::to_owned))
    });
    assert_eq!(used, documented.collect());
}

#[test]
fn every_alarm_names_the_first_step_and_its_runbook_entry() {
    let template = template();
    let runbook = read("docs/runbook.md");
    let entries: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alarms = resources_of(&template, "AWS::CloudWatch::Alarm");
    for (name, alarm) in &alarms {
        let alarm = &alarm["Properties"];
        let description = text(&alarm["AlarmDescription"]);
        let entry = format!("docs/runbook.md#{}", name.to_lowercase());
        assert!(description.contains(". First ") && description.ends_with(&entry), "{name}: {description}");
        assert!(entries.contains(name.as_str()), "docs/runbook.md lacks an entry ### {name}");
        let topic = json!([{ "Fn::If": ["MakesAlarmTopic", { "Ref": "AlarmTopic" }, { "Ref": "AlarmTopicArn" }] }]);
        assert_eq!((&alarm["AlarmActions"], &alarm["OKActions"]), (&topic, &topic), "{name}");
        // With the default, an alarm without data keeps its state.
        let missing = if name == "NoTrafficAlarm" { "breaching" } else { "notBreaching" };
        assert_eq!(alarm["TreatMissingData"], missing, "{name}");
    }
    let names: BTreeSet<&str> = alarms.iter().map(|(name, _)| name.as_str()).collect();
    for entry in entries.iter().filter(|entry| entry.ends_with("Alarm")) {
        assert!(names.contains(entry), "docs/runbook.md has an entry {entry}, but the template has no such alarm");
    }
    let dashboard = dashboard(&template).to_string();
    for (name, alarm) in &alarms {
        // The dashboard cannot refer to an alarm that may not exist.
        let shown = dashboard.contains(&format!("${{{name}.Arn}}"));
        assert!(shown || alarm.get("Condition").is_some(), "{name} is missing from the dashboard");
    }
}

#[test]
fn the_function_has_the_time_out_and_limits_that_the_protocol_requires() {
    let template = template();
    let function = properties(&template, "Function");
    assert_eq!(function["Timeout"], FUNCTION_TIMEOUT.as_secs(), "the lease depends on it");
    assert!(function.get("AutoPublishAlias").is_none(), "a new limit would publish no version and have no effect");
    let gateway = properties(&template, "ApiIntegration")["TimeoutInMillis"].as_u64().expect("a number");
    assert!(u128::from(gateway) > FUNCTION_TIMEOUT.as_millis());
    assert_eq!(function["Tracing"], json!({ "Ref": "Tracing" }));
    assert_eq!(template["Parameters"]["Tracing"]["Default"], "Active");
    let throttling = &properties(&template, "ApiStage")["DefaultRouteSettings"];
    assert!(throttling.get("ThrottlingRateLimit").is_some() && throttling.get("ThrottlingBurstLimit").is_some());
    for (name, group) in resources_of(&template, "AWS::Logs::LogGroup") {
        assert_eq!(group["Properties"]["RetentionInDays"], json!({ "Ref": "LogRetentionDays" }), "{name}");
    }
}

#[test]
fn queues_and_tables_have_the_documented_settings() {
    let template = template();
    for (name, queue) in resources_of(&template, "AWS::SQS::Queue") {
        let queue = &queue["Properties"];
        assert_eq!(queue["MaximumMessageSize"], 1_048_576, "{name}");
        assert_eq!(queue["SqsManagedSseEnabled"], true, "{name}");
        assert!(queue.get("FifoQueue").is_none(), "{name}: a FIFO queue is refused at init");
    }
    let retention = |queue| properties(&template, queue)["MessageRetentionPeriod"].as_u64().expect("seconds");
    assert_eq!(retention("DeadLetterQueue"), 14 * 86_400);
    assert!(
        retention("DeadLetterQueue") >= 2 * retention("Queue"),
        "the age of a message continues to count in the dead-letter queue"
    );
    let oldest = &template["Parameters"]["OldestMessageSeconds"];
    assert_eq!(oldest["MaxValue"], retention("Queue"), "the alarm must come before messages expire");
    let dead_letters = json!({ "Fn::GetAtt": "DeadLetterQueue.Arn" });
    assert_eq!(properties(&template, "Queue")["RedrivePolicy"]["deadLetterTargetArn"], dead_letters);

    let state = properties(&template, "StateTable");
    assert_eq!(state["TimeToLiveSpecification"], json!({ "AttributeName": "expires_at", "Enabled": true }));
    let keys = properties(&template, "ApiKeysTable");
    assert_eq!(keys["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true);
    assert_eq!(keys["DeletionProtectionEnabled"], json!({ "Ref": "ProtectApiKeys" }));
    assert_eq!(template["Parameters"]["ProtectApiKeys"]["Default"], "true");
}

/// No update of the stack may lose API keys or queued events. These resources outlive the stack, have no fixed
/// name that would conflict with a replacement, and `make deploy` does not allow their replacement.
#[test]
fn resources_with_data_outlive_the_stack() {
    let template = template();
    let policy: Value = serde_json::from_str(&read("tools/stack-policy.json")).expect("JSON");
    let denied = &policy["Statement"][1];
    assert_eq!((&denied["Effect"], &denied["Action"]), (&json!("Deny"), &json!(["Update:Replace", "Update:Delete"])));
    let with_data = ["ApiKeysTable", "Queue", "DeadLetterQueue"];
    for name in with_data {
        let resource = &template["Resources"][name];
        assert_eq!(
            (&resource["DeletionPolicy"], &resource["UpdateReplacePolicy"]),
            (&json!("Retain"), &json!("Retain"))
        );
        assert!(
            resource["Properties"].get("QueueName").or(resource["Properties"].get("TableName")).is_none(),
            "{name}"
        );
    }
    for name in with_data.into_iter().chain(["StateTable"]) {
        let id = json!(format!("LogicalResourceId/{name}"));
        assert!(denied["Resource"].as_array().expect("ids").contains(&id), "{name} may be replaced");
    }
    let resources = template["Resources"].as_object().expect("resources");
    for (name, resource) in resources {
        let kind = text(&resource["Type"]);
        if ["AWS::SQS::Queue", "AWS::DynamoDB::Table", "AWS::Logs::LogGroup", "AWS::SNS::Topic"].contains(&kind) {
            let has_policies =
                ["DeletionPolicy", "UpdateReplacePolicy"].iter().all(|policy| resource.get(policy).is_some());
            assert!(has_policies, "{name} needs a DeletionPolicy and an UpdateReplacePolicy");
        }
    }
}

#[test]
fn the_role_allows_only_the_required_actions_on_the_resources_of_the_stack() {
    let template = template();
    let policies = properties(&template, "FunctionRole")["Policies"].as_array().expect("policies");
    let statements = policies.iter().flat_map(|policy| policy["PolicyDocument"]["Statement"].as_array().expect("some"));
    let mut granted = BTreeSet::new();
    for statement in statements {
        let actions = match &statement["Action"] {
            Value::Array(actions) => actions.iter().map(|action| text(action).to_owned()).collect(),
            action => vec![text(action).to_owned()],
        };
        assert!(actions.iter().all(|action| !action.contains('*')), "{statement}");
        // The actions of X-Ray do not support resources.
        let any = actions.iter().all(|action| action.starts_with("xray:"));
        assert_eq!(statement["Resource"] == "*", any, "{statement}");
        assert!(any || statement["Resource"].get("Fn::GetAtt").is_some(), "{statement}");
        granted.extend(actions);
    }
    let used = [
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:UpdateItem",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "sqs:SendMessage",
        "xray:PutTelemetryRecords",
        "xray:PutTraceSegments",
    ];
    assert_eq!(granted.iter().map(String::as_str).collect::<Vec<_>>(), used);
}

/// The function accepts every value that the parameters of the template accept. Otherwise a stack could be
/// deployed whose function cannot start.
#[test]
fn the_parameters_have_the_bounds_of_the_configuration() {
    let template = template();
    let accepts = |variable: &str, value: &str| {
        let lookup = |name: &str| match name {
            _ if name == variable => Some(value.to_owned()),
            "EVENTS_QUEUE_URL" => Some("https://sqs.eu-west-1.amazonaws.com/123456789012/events".to_owned()),
            "STATE_TABLE" | "API_KEYS_TABLE" => Some("table".to_owned()),
            _ => None,
        };
        Config::from_lookup(lookup).is_ok()
    };
    let bounds = [("MaxEventsPerMessage", "MAX_EVENTS_PER_MESSAGE"), ("DedupWindowSeconds", "DEDUP_WINDOW_SECONDS")];
    let variables = &properties(&template, "Function")["Environment"]["Variables"];
    for (parameter, variable) in bounds {
        let definition = &template["Parameters"][parameter];
        let [least, most] = ["MinValue", "MaxValue"].map(|bound| definition[bound].as_i64().expect("a bound"));
        for (value, good) in [(least, true), (least - 1, false), (most, true), (most + 1, false)] {
            assert_eq!(accepts(variable, &value.to_string()), good, "{parameter}={value}");
        }
        assert_eq!(variables[variable], json!({ "Ref": parameter }));
    }
    let pattern = jsonschema::validator_for(&json!({
        "pattern": template["Parameters"]["RateLimitEventsPerSecond"]["AllowedPattern"],
    }));
    let pattern = pattern.expect("a pattern");
    for number in (0..2000).chain([9999, 10_000, 999_999, 1_000_000, 9_999_999]) {
        let value = number.to_string();
        let is_accepted = pattern.is_valid(&json!(value));
        assert_eq!(is_accepted, number == 0 || number >= 100, "{value}");
        assert_eq!(is_accepted, accepts("RATE_LIMIT_EVENTS_PER_SECOND", &value), "{value}");
    }
    for value in ["", "-1", "050", "5e2", "10000000"] {
        assert!(!pattern.is_valid(&json!(value)), "{value}");
    }
    for level in template["Parameters"]["LogLevel"]["AllowedValues"].as_array().expect("levels") {
        assert!(accepts("RUST_LOG", text(level)), "{level}");
    }
    // Lambda must not filter by level, because it would drop lines that contain metrics.
    assert_eq!(variables["RUST_LOG"], json!({ "Ref": "LogLevel" }));
    assert_eq!(properties(&template, "Function")["LoggingConfig"]["ApplicationLogLevel"], "TRACE");
    let given: BTreeSet<&str> = variables.as_object().map(Map::keys).expect("some").map(String::as_str).collect();
    for required in ["EVENTS_QUEUE_URL", "STATE_TABLE", "API_KEYS_TABLE"] {
        assert!(given.contains(required));
    }
    // The defaults are those of docs/contract.md, "Configuration".
    let default = |parameter: &str| template["Parameters"][parameter]["Default"].to_string().replace('"', "");
    assert_eq!(
        ["MaxEventsPerMessage", "DedupWindowSeconds", "RateLimitEventsPerSecond", "LogLevel"].map(default),
        ["50", "86400", "0", "INFO"]
    );
}
