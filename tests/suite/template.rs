//! The contents of template.yaml, and its agreement with the code and the docs.

use event_ingest::config::Config;
use event_ingest::deadline::FUNCTION_TIMEOUT;
use event_ingest::telemetry::{METRICS, NAMESPACE};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use yaml_serde::Value as Yaml;

pub(crate) fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The template, with its tags in the long form: `!Ref X` becomes `{"Ref": "X"}`.
pub(crate) fn template() -> Value {
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

pub(crate) fn resources_of(template: &Value, kind: &str) -> Vec<(String, Value)> {
    let resources = template["Resources"].as_object().expect("resources");
    let of_kind = resources.iter().filter(|(_, resource)| resource["Type"] == kind);
    of_kind.map(|(name, resource)| (name.clone(), resource.clone())).collect()
}

pub(crate) fn properties<'a>(template: &'a Value, resource: &str) -> &'a Value {
    &template["Resources"][resource]["Properties"]
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

/// The output of tools/translate.py.
pub(crate) fn translate(what: &str, parameters: &[&str]) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join(".venv/sam/bin/python"))
        .arg(root.join("tools/translate.py"))
        .arg(what)
        .args(parameters)
        .output()
        .expect("python starts: `make test` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The JSON of the dashboard on AWS. Most variables of `!Sub` are not replaced.
fn dashboard(template: &Value) -> Value {
    let [body, variables] = sub_with_variables(&properties(template, "Dashboard")["DashboardBody"]);
    let [condition, rate_alarms, none] =
        variables["RateAlarms"]["Fn::If"].as_array().expect("an if").as_slice().first_chunk().expect("three parts");
    assert_eq!((condition, none), (&json!("OnAws"), &json!("")));
    let body = text(body).replace("${RateAlarms}", text(&rate_alarms["Fn::Sub"]));
    serde_json::from_str(&body.replace("${OldestMessageSeconds}", "900")).expect("JSON")
}

fn sub_with_variables(value: &Value) -> &[Value; 2] {
    value["Fn::Sub"].as_array().expect("a list").as_slice().try_into().expect("a text and its variables")
}

/// The namespace, name, and dimension of every metric on the dashboard that has a dimension.
fn dashboard_metrics(template: &Value) -> Vec<[String; 4]> {
    let dashboard = dashboard(template);
    let widgets = dashboard["widgets"].as_array().expect("widgets");
    let metrics = widgets.iter().filter_map(|widget| widget["properties"]["metrics"].as_array()).flatten();
    let metrics = metrics.filter(|metric| metric[3].is_string());
    metrics.map(|metric| [0, 1, 2, 3].map(|index| text(&metric[index]).to_owned())).collect()
}

/// The metrics that an alarm reads, as members `Namespace`, `MetricName`, and `Dimensions`.
pub(crate) fn metrics_of(alarm: &Value) -> Vec<&Value> {
    match alarm["Properties"]["Metrics"].as_array() {
        Some(queries) => queries.iter().filter_map(|query| query["MetricStat"].get("Metric")).collect(),
        None => vec![&alarm["Properties"]],
    }
}

pub(crate) fn alarms(template: &Value) -> Vec<(String, Value)> {
    resources_of(template, "AWS::CloudWatch::Alarm")
}

#[test]
fn alarms_and_the_dashboard_use_all_metrics_of_the_function_and_no_others() {
    let template = template();
    let mut own = Vec::new();
    for (name, alarm) in alarms(&template) {
        for metric in metrics_of(&alarm).into_iter().filter(|metric| metric["Namespace"] == NAMESPACE) {
            let dimensions = json!([{ "Name": "FunctionName", "Value": { "Ref": "Function" } }]);
            assert_eq!(metric["Dimensions"], dimensions, "{name}");
            own.push(text(&metric["MetricName"]).to_owned());
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
            "NumberOfMessagesReceived",
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
    let alarms = alarms(&template);
    let watched = alarms.iter().flat_map(|(_, alarm)| metrics_of(alarm)).filter(|metric| !is_of_the_filter(metric));
    let watched = watched.map(|metric| {
        let [dimension] = metric["Dimensions"].as_array().expect("dimensions").as_slice() else {
            panic!("one dimension: {metric}")
        };
        [&metric["Namespace"], &metric["MetricName"], &dimension["Name"]].map(|value| text(value).to_owned())
    });
    let shown = dashboard_metrics(&template).into_iter().map(|[namespace, metric, name, _]| [namespace, metric, name]);
    let used: BTreeSet<_> = watched.chain(shown).filter(|[namespace, ..]| namespace != NAMESPACE).collect();
    let documented = AWS_METRICS.iter().flat_map(|(namespace, dimension, metrics)| {
        metrics.iter().map(|metric| [*namespace, *metric, *dimension].map(str::to_owned))
    });
    assert_eq!(used, documented.collect());
}

/// Whether a metric is the one that the filter of the access log publishes.
fn is_of_the_filter(metric: &Value) -> bool {
    metric["Namespace"] == json!({ "Fn::Sub": "EventIngest/${AWS::StackName}" })
}

/// API Gateway publishes no metric of the requests that it throttles, so a filter counts them in its log.
#[test]
fn the_filter_of_the_access_log_counts_the_throttled_requests_that_the_alarm_and_the_dashboard_show() {
    let template = template();
    let filter = properties(&template, "GatewayThrottles");
    assert_eq!(filter["LogGroupName"], json!({ "Ref": "AccessLog" }));
    assert_eq!(filter["FilterPattern"], r#"{ $.status = "429" && $.functionStatus = "-" }"#);
    let format = text(&properties(&template, "ApiStage")["AccessLogSettings"]["Format"]);
    let line: Value = serde_json::from_str(format).expect("JSON");
    assert_eq!(line["status"], "$context.status");
    // The status of the function's response, and the status of Lambda's own.
    assert_eq!(line["functionStatus"], "$context.integration.status");
    assert_eq!(line["integrationStatus"], "$context.integrationStatus");

    let [published] = filter["MetricTransformations"].as_array().expect("a list").as_slice() else {
        panic!("one metric: {filter}")
    };
    assert_eq!((&published["MetricName"], &published["MetricValue"]), (&json!("GatewayThrottles"), &json!("1")));
    assert_eq!(published["MetricNamespace"], json!({ "Fn::Sub": "EventIngest/${AWS::StackName}" }));
    let alarm = &template["Resources"]["GatewayThrottlesAlarm"];
    let watched: Vec<_> = metrics_of(alarm).into_iter().filter(|metric| is_of_the_filter(metric)).collect();
    assert_eq!(watched, [&json!({ "Namespace": published["MetricNamespace"], "MetricName": published["MetricName"] })]);
    let shown = r#"["EventIngest/${AWS::StackName}","GatewayThrottles","#;
    assert!(dashboard(&template).to_string().contains(shown));
}

/// The access log contains nothing that a client can make long, and no header or query string, which may
/// contain keys.
#[test]
fn a_line_of_the_access_log_is_short() {
    let template = template();
    let format = text(&properties(&template, "ApiStage")["AccessLogSettings"]["Format"]);
    let longest = [
        ("$context.requestId", "JKJaXmPLvHcESHA="),
        ("$context.identity.sourceIp", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
        ("$context.routeKey", "POST /api/v1/events/batch"),
        ("$context.status", "202"),
        ("$context.responseLatency", "4000"),
        ("$context.integrationStatus", "200"),
        ("$context.integration.status", "202"),
        ("$context.integrationErrorMessage", "-"),
    ];
    let line = longest.iter().fold(format.to_owned(), |line, (variable, value)| {
        line.replace(&format!("\"{variable}\""), &format!("\"{value}\""))
    });
    assert!(!line.contains('$'), "{line}");
    assert!(line.len() <= 230, "{} bytes: {line}", line.len());
}

#[test]
fn every_alarm_names_the_first_step_and_its_runbook_entry() {
    let template = template();
    let runbook = read("docs/runbook.md");
    let entries: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alarms = alarms(&template);
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
        // The dashboard cannot refer to an alarm that may not exist on AWS.
        let shown = dashboard.contains(&format!("${{{name}.Arn}}"));
        assert_eq!(shown, alarm["Condition"] != "WatchesForTraffic", "{name}");
    }
}

#[test]
fn the_function_has_the_time_out_and_limits_that_the_protocol_requires() {
    let template = template();
    let function = properties(&template, "Function");
    assert_eq!(function["Timeout"], FUNCTION_TIMEOUT.as_secs(), "the lease depends on it");
    let gateway = properties(&template, "ApiIntegration")["TimeoutInMillis"].as_u64().expect("a number");
    assert!(u128::from(gateway) > FUNCTION_TIMEOUT.as_millis());
    assert_eq!(function["Tracing"], json!({ "Ref": "Tracing" }));
    assert_eq!(template["Parameters"]["Tracing"]["Default"], "PassThrough", "traces cost more than all else");
    assert_eq!(function["LoggingConfig"]["SystemLogLevel"], json!({ "Ref": "SystemLogLevel" }));
    assert_eq!(template["Parameters"]["SystemLogLevel"]["Default"], "WARN", "a third of the log");
    let throttling = &properties(&template, "ApiStage")["DefaultRouteSettings"];
    assert!(throttling.get("ThrottlingRateLimit").is_some() && throttling.get("ThrottlingBurstLimit").is_some());
    for (name, group) in resources_of(&template, "AWS::Logs::LogGroup") {
        assert_eq!(group["Properties"]["RetentionInDays"], json!({ "Ref": "LogRetentionDays" }), "{name}");
    }
    // With an empty AWS_ENDPOINT_URL, every call of the SDK would panic, and only on AWS.
    let endpoint = json!({ "Fn::If": ["OnAws", { "Ref": "AWS::NoValue" }, { "Ref": "EndpointUrl" }] });
    assert_eq!(function["Environment"]["Variables"]["AWS_ENDPOINT_URL"], endpoint);
    assert_eq!(template["Conditions"]["OnAws"], json!({ "Fn::Equals": [{ "Ref": "EndpointUrl" }, ""] }));
    assert_eq!(template["Parameters"]["EndpointUrl"]["Default"], "");
}

#[test]
fn queues_and_tables_have_the_documented_settings() {
    let template = template();
    for (name, queue) in resources_of(&template, "AWS::SQS::Queue") {
        let queue = &queue["Properties"];
        assert_eq!(queue["MaximumMessageSize"], 1_048_576, "{name}");
        assert_eq!(queue["SqsManagedSseEnabled"], json!({ "Fn::If": ["HasKmsKey", false, true] }), "{name}");
        let if_ordered = |value: Value| json!({ "Fn::If": ["IsOrdered", value, { "Ref": "AWS::NoValue" }] });
        assert_eq!(queue["FifoQueue"], if_ordered(true.into()), "{name}");
        assert_eq!(queue["DeduplicationScope"], if_ordered("messageGroup".into()), "{name}");
        assert_eq!(queue["FifoThroughputLimit"], if_ordered("perMessageGroupId".into()), "{name}");
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
    assert_eq!(properties(&template, "Queue")["RedriveAllowPolicy"], json!({ "redrivePermission": "denyAll" }));

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
        // With RetainExceptOnCreate, a first deployment that fails would also try to delete the table of API
        // keys. Its deletion protection would then stop the rollback.
        let deletion = if name == "ApiKeysTable" { "Retain" } else { "RetainExceptOnCreate" };
        assert_eq!(
            (&resource["DeletionPolicy"], &resource["UpdateReplacePolicy"]),
            (&json!(deletion), &json!("Retain"))
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
        let (condition, statement) = match statement["Fn::If"].as_array() {
            Some(parts) => (text(&parts[0]), &parts[1]),
            None => ("", statement),
        };
        let actions = match &statement["Action"] {
            Value::Array(actions) => actions.iter().map(|action| text(action).to_owned()).collect(),
            action => vec![text(action).to_owned()],
        };
        assert!(actions.iter().all(|action| !action.contains('*')), "{statement}");
        // The actions of X-Ray do not support resources.
        let any = actions.iter().all(|action| action.starts_with("xray:"));
        assert_eq!(statement["Resource"] == "*", any, "{statement}");
        let of_key = statement["Resource"] == json!({ "Ref": "KmsKeyArn" });
        assert!(any || of_key || statement["Resource"].get("Fn::GetAtt").is_some(), "{statement}");
        let expected = if any {
            "RecordsTraces"
        } else if of_key {
            "HasKmsKey"
        } else {
            ""
        };
        assert_eq!(condition, expected, "{statement}");
        // The function may use the key only through SQS and DynamoDB.
        assert_eq!(statement["Condition"]["StringEquals"].get("kms:ViaService").is_some(), of_key, "{statement}");
        granted.extend(actions);
    }
    let used = [
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:UpdateItem",
        "kms:Decrypt",
        "kms:GenerateDataKey",
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
    let bounds = [
        ("MaxEventsPerMessage", "MAX_EVENTS_PER_MESSAGE"),
        ("OrderedLanes", "ORDERED_LANES"),
        ("DedupWindowSeconds", "DEDUP_WINDOW_SECONDS"),
    ];
    let variables = &properties(&template, "Function")["Environment"]["Variables"];
    for (parameter, variable) in bounds {
        let definition = &template["Parameters"][parameter];
        let [least, most] = ["MinValue", "MaxValue"].map(|bound| definition[bound].as_i64().expect("a bound"));
        // 0 leaves the variable out, so that the function's default applies.
        let least = if parameter == "MaxEventsPerMessage" { least + 1 } else { least };
        for (value, good) in [(least, true), (least - 1, false), (most, true), (most + 1, false)] {
            assert_eq!(accepts(variable, &value.to_string()), good, "{parameter}={value}");
        }
        let value = json!({ "Ref": parameter });
        let absent = json!({ "Fn::If": ["LimitsMessages", value, { "Ref": "AWS::NoValue" }] });
        assert_eq!(variables[variable], if parameter == "MaxEventsPerMessage" { absent } else { value });
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
        ["MaxEventsPerMessage", "OrderedLanes", "DedupWindowSeconds", "RateLimitEventsPerSecond", "LogLevel"]
            .map(default),
        ["0", "10", "86400", "0", "INFO"]
    );
}

/// The parameters that determine a value, directly or through a condition.
fn parameters_in(value: &Value, template: &Value) -> BTreeSet<String> {
    let is_parameter = |name: &str| template["Parameters"].get(name).is_some();
    let mut found = BTreeSet::new();
    match value {
        Value::String(text) => {
            let names = text.split("${").skip(1).filter_map(|rest| rest.split('}').next());
            found.extend(names.filter(|name| is_parameter(name)).map(str::to_owned));
        }
        Value::Array(items) => found.extend(items.iter().flat_map(|item| parameters_in(item, template))),
        Value::Object(members) => {
            for (name, member) in members {
                if name == "Ref" && is_parameter(text(member)) {
                    found.insert(text(member).to_owned());
                }
                let condition = match name.as_str() {
                    "Fn::If" => Some(&template["Conditions"][text(&member[0])]),
                    "Condition" => member.as_str().map(|condition| &template["Conditions"][condition]),
                    _ => None,
                };
                found.extend(parameters_in(condition.unwrap_or(&Value::Null), template));
                found.extend(parameters_in(member, template));
            }
        }
        _ => {}
    }
    found
}

/// SAM publishes a version if a property of the function changes as written, but `!Ref` stays the same when the
/// value of the parameter changes. The description of the version contains the values, and `CloudFormation`
/// replaces a version whose description changes.
#[test]
fn a_new_value_of_a_parameter_publishes_a_version() {
    let template = template();
    let function = properties(&template, "Function").as_object().expect("properties");
    // A version does not contain these properties.
    let unversioned = ["DeploymentPreference", "ReservedConcurrentExecutions", "VersionDescription"];
    let versioned: Map<String, Value> = function
        .iter()
        .filter(|(name, _)| !unversioned.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut used = parameters_in(&versioned.into(), &template);
    // These properties change the name of the resource, which the function has in a variable.
    for (resource, property) in [
        ("Queue", "FifoQueue"),
        ("Queue", "QueueName"),
        ("StateTable", "KeySchema"),
        ("StateTable", "TableName"),
        ("ApiKeysTable", "KeySchema"),
        ("ApiKeysTable", "TableName"),
    ] {
        used.extend(parameters_in(&properties(&template, resource)[property], &template));
    }
    let description = &function["VersionDescription"];
    // A version with a new description but the same contents would be refused, so both sets are equal.
    assert_eq!(parameters_in(description, &template), used);

    let longest = |name: &String| {
        let parameter = &template["Parameters"][name];
        let allowed = parameter["AllowedValues"].as_array().into_iter().flatten().map(|value| text(value).len()).max();
        match name.as_str() {
            "Version" => 40,
            "RateLimitEventsPerSecond" => 7,
            // On a local AWS only.
            "EndpointUrl" => "http://localhost:65535".len(),
            _ => allowed.unwrap_or_else(|| parameter["MaxValue"].to_string().len()),
        }
    };
    let written = text(&description["Fn::Sub"]);
    let references: usize = used.iter().map(|name| name.len() + "${}".len()).sum();
    let values: usize = used.iter().map(longest).sum();
    assert!(written.len() - references + values <= 256, "Lambda refuses a longer description");
}

#[test]
fn api_gateway_calls_the_alias_and_may_do_so_before_it_does() {
    let template = translate("template", &[]);
    let alias = json!({ "Ref": "FunctionAliaslive" });
    assert_eq!(properties(&template, "ApiIntegration")["IntegrationUri"], alias);
    assert_eq!(properties(&template, "ApiMayInvokeFunction")["FunctionName"], alias);
    assert_eq!(template["Resources"]["ApiIntegration"]["DependsOn"], "ApiMayInvokeFunction");
    assert_eq!(template["Outputs"]["FunctionAlias"]["Value"], alias);
    let versions = resources_of(&template, "AWS::Lambda::Version");
    let [(name, version)] = versions.as_slice() else { panic!("one version: {versions:?}") };
    assert_eq!((&version["DeletionPolicy"], &version["UpdateReplacePolicy"]), (&json!("Retain"), &json!("Retain")));
    let target = &properties(&template, "FunctionAliaslive")["FunctionVersion"];
    assert_eq!(target, &json!({ "Fn::GetAtt": [name, "Version"] }));
    assert!(template["Resources"]["FunctionAliaslive"].get("UpdatePolicy").is_none(), "no canary by default");
    assert!(resources_of(&template, "AWS::CodeDeploy::DeploymentGroup").is_empty());
}

#[test]
fn a_canary_gets_a_tenth_of_the_requests_and_goes_back_on_an_alarm() {
    let template = translate("template", &["CanaryDeployment=true"]);
    let update = &template["Resources"]["FunctionAliaslive"]["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"];
    assert_eq!(update["DeploymentGroupName"], json!({ "Ref": "FunctionDeploymentGroup" }));
    let group = properties(&template, "FunctionDeploymentGroup");
    assert!(group["DeploymentConfigName"].to_string().contains("Canary10Percent5Minutes"));
    assert!(group["AutoRollbackConfiguration"]["Events"].to_string().contains("DEPLOYMENT_STOP_ON_ALARM"));
    let [on_aws, watched, _] =
        group["AlarmConfiguration"]["Fn::If"].as_array().expect("an if").as_slice().first_chunk().expect("three parts");
    assert_eq!(on_aws, "OnAws");
    let names = ["ServerFaultsAlarm", "Gateway5xxAlarm", "FunctionErrorsAlarm", "CompletionFailuresAlarm"];
    let names = names.map(|name| json!({ "Name": { "Ref": name } }));
    assert_eq!(watched, &json!({ "Enabled": true, "Alarms": names }));
    // These alarms must go off while the new version gets a tenth of the requests, within five minutes.
    for name in names {
        let alarm = properties(&template, text(&name["Name"]["Ref"]));
        assert_eq!(alarm["EvaluationPeriods"], 1, "{name}");
        assert!(
            alarm["Metrics"].as_array().expect("metrics").iter().all(|query| query["MetricStat"]["Period"] != 3600)
        );
    }
    assert!(read("samconfig.toml").contains(r#""CanaryDeployment=true""#), "the profile prod uses it");
}

/// Each field of the saved queries is a member of the log lines, and not a misspelled one.
#[test]
fn the_saved_queries_name_members_of_the_log_lines() {
    let template = template();
    let source = read("src/telemetry.rs");
    let story = source.split("struct Story {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("a struct");
    let members = story.lines().filter_map(|line| line.trim().split_once(": ")).map(|(name, _)| name);
    // `location` is that of a panic; the others are members of Lambda's own lines.
    let mut of_function: BTreeSet<&str> = members.chain(METRICS).chain(["location", "type", "record.status"]).collect();
    of_function.insert("@timestamp");
    let format = text(&properties(&template, "ApiStage")["AccessLogSettings"]["Format"]);
    let line: Value = serde_json::from_str(format).expect("JSON");
    let of_access = line.as_object().expect("an object").keys().map(String::as_str).collect();

    let words = ["as", "asc", "by", "desc", "fields", "filter", "in", "like", "limit", "or", "sort", "stats"];
    let functions = ["count(*)", "ispresent", "latest"];
    let queries = resources_of(&template, "AWS::Logs::QueryDefinition");
    assert_eq!(queries.len(), 5);
    for (name, query) in queries {
        assert_eq!(query["Condition"], "OnAws", "{name}: the local AWS has no saved queries");
        let query = &query["Properties"];
        let of_log: &BTreeSet<&str> = match query["LogGroupNames"].to_string().as_str() {
            r#"[{"Ref":"FunctionLog"}]"# => &of_function,
            r#"[{"Ref":"AccessLog"}]"# => &of_access,
            group => panic!("{name}: {group}"),
        };
        let named: Vec<&str> = text(&query["QueryString"]).split(['|', ',', ' ', '\n', '(', ')', '[', ']']).collect();
        let mut follows_as = false;
        for word in named.into_iter().filter(|word| !word.is_empty()) {
            let is_new_name = std::mem::replace(&mut follows_as, word == "as");
            let is_known = of_log.contains(word) || words.contains(&word) || is_new_name;
            let is_literal = word.starts_with(['"', '=', '/']) || word.parse::<u32>().is_ok() || word == "*";
            let is_function = functions.iter().any(|function| function.starts_with(word));
            let is_sorted = ["requests"].contains(&word);
            assert!(is_known || is_literal || is_function || is_sorted, "{name}: {word}");
        }
    }
}

#[test]
fn queues_refuse_requests_without_tls_and_serve_only_the_named_accounts() {
    let template = template();
    for (policy, queue) in [("QueuePolicy", "Queue"), ("DeadLetterQueuePolicy", "DeadLetterQueue")] {
        let policy = properties(&template, policy);
        assert_eq!(policy["Queues"], json!([{ "Ref": queue }]));
        let arn = json!({ "Fn::GetAtt": format!("{queue}.Arn") });
        let statements = policy["PolicyDocument"]["Statement"].as_array().expect("statements");
        let tls = json!({ "Sid": "RequireTls", "Effect": "Deny", "Principal": "*", "Action": "sqs:*", "Resource": arn,
            "Condition": { "Bool": { "aws:SecureTransport": "false" } } });
        assert_eq!(statements[0], tls);
        // Nobody else may send, and nobody may read the dead-letter queue.
        assert_eq!(statements.len(), if queue == "Queue" { 2 } else { 1 });
    }
    let allowed = &properties(&template, "QueuePolicy")["PolicyDocument"]["Statement"][1]["Fn::If"];
    assert_eq!((&allowed[0], &allowed[2]), (&json!("HasConsumerPrincipals"), &json!({ "Ref": "AWS::NoValue" })));
    let consume = ["ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueAttributes", "GetQueueUrl"];
    assert_eq!(allowed[1]["Action"], json!(consume.map(|action| format!("sqs:{action}"))));
    assert_eq!(allowed[1]["Principal"], json!({ "AWS": { "Ref": "ConsumerPrincipals" } }));
}

#[test]
fn the_key_encrypts_everything_that_is_stored() {
    let template = template();
    let key = json!({ "Fn::If": ["HasKmsKey", { "Ref": "KmsKeyArn" }, { "Ref": "AWS::NoValue" }] });
    let mut encrypted = 0;
    for (kind, property) in [
        ("AWS::SQS::Queue", "KmsMasterKeyId"),
        ("AWS::SNS::Topic", "KmsMasterKeyId"),
        ("AWS::Logs::LogGroup", "KmsKeyId"),
    ] {
        for (name, resource) in resources_of(&template, kind) {
            assert_eq!(resource["Properties"][property], key, "{name}");
            encrypted += 1;
        }
    }
    for (name, table) in resources_of(&template, "AWS::DynamoDB::Table") {
        let encryption = &table["Properties"]["SSESpecification"]["Fn::If"];
        assert_eq!(encryption[0], "HasKmsKey", "{name}");
        let expected = json!({ "SSEEnabled": true, "SSEType": "KMS", "KMSMasterKeyId": { "Ref": "KmsKeyArn" } });
        assert_eq!(encryption[1], expected, "{name}");
        encrypted += 1;
    }
    assert_eq!(encrypted, 7);
}
