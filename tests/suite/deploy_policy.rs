//! tools/deploy-policy.json, the IAM policy for those who deploy, compared with what template.yaml creates.

use crate::template::{read, text, translate};
use serde_json::Value;
use std::collections::BTreeSet;

/// Actions that the schemas of `CloudFormation` name for features that the template does not use.
const UNUSED: [&str; 39] = [
    // Functions with a VPC, a file system, signed code, provisioned concurrency, or a pinned runtime.
    "ec2:*",
    "elasticfilesystem:*",
    "s3files:*",
    "lambda:AssociateRuntimeAlias",
    "lambda:DeleteFunctionCodeSigningConfig",
    "lambda:DeleteProvisionedConcurrencyConfig",
    "lambda:PassCapacityProvider",
    "lambda:PutFunctionCodeSigningConfig",
    "lambda:PutFunctionRecursionConfig",
    "lambda:PutFunctionScalingConfig",
    "lambda:PutProvisionedConcurrencyConfig",
    "lambda:PutRuntimeManagementConfig",
    // An API that is defined in S3, deployments to servers, roles with a permissions boundary.
    "s3:getObject",
    "codedeploy:RegisterOnPremisesInstance",
    "iam:DeleteRolePermissionsBoundary",
    "iam:PutRolePermissionsBoundary",
    // Tables with replicas, streams, imported items, a policy, or contributor insights.
    "dynamodb:AssociateTableReplica",
    "dynamodb:CreateTableReplica",
    "dynamodb:DeleteResourcePolicy",
    "dynamodb:DisableKinesisStreamingDestination",
    "dynamodb:EnableKinesisStreamingDestination",
    "dynamodb:ImportTable",
    "dynamodb:PutResourcePolicy",
    "dynamodb:UpdateContributorInsights",
    "dynamodb:UpdateKinesisStreamingDestination",
    "iam:CreateServiceLinkedRole",
    "kinesis:*",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    // Log groups and topics with data protection, indexes, or other destinations than CloudWatch.
    "firehose:*",
    "s3:REST.PUT.OBJECT",
    "sns:PutDataProtectionPolicy",
    "logs:DeleteDataProtectionPolicy",
    "logs:DeleteIndexPolicy",
    "logs:DeleteResourcePolicy",
    "logs:PutBearerTokenAuthentication",
    "logs:PutDataProtectionPolicy",
    "logs:PutIndexPolicy",
    "logs:PutLogGroupDeletionProtection",
];

/// Granted actions that the schemas do not name, and what needs them.
const BEYOND: [(&str, &str); 12] = [
    ("cloudformation:*", "sam deploy, sam delete, and tools/deploy.py"),
    ("s3:CreateBucket", "sam deploy, for the bucket of the builds"),
    ("s3:Put*", "sam deploy, for the bucket of the builds"),
    ("lambda:InvokeFunction", "tools/verify.py, to find out why the function does not start"),
    ("logs:FilterLogEvents", "tools/verify.py, to read the function's log"),
    // The other permissions of a restore are needed anyway (PointInTimeRecovery.Tutorial.html of DynamoDB).
    ("dynamodb:RestoreTableToPointInTime", "tools/keys_backup.py, to check the backup"),
    ("dynamodb:ListTables", "the clean-up after a failed first deployment"),
    // developerguide/http-api-logging.html of API Gateway.
    ("logs:DeleteLogDelivery", "the access log of an HTTP API"),
    ("logs:GetLogDelivery", "the access log of an HTTP API"),
    ("logs:ListLogDeliveries", "the access log of an HTTP API"),
    ("logs:UpdateLogDelivery", "the access log of an HTTP API"),
    // developerguide/encryption.usagenotes.html of DynamoDB.
    ("kms:ReEncrypt*", "tables with a key of their own"),
];

fn policy() -> Value {
    serde_json::from_str(&read("tools/deploy-policy.json")).expect("JSON")
}

fn statements(policy: &Value) -> &[Value] {
    policy["Statement"].as_array().expect("statements")
}

fn actions(statement: &Value) -> impl Iterator<Item = &str> {
    statement["Action"].as_array().expect("a list").iter().map(text)
}

fn covers(pattern: &str, action: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == action, |prefix| action.starts_with(prefix))
}

#[test]
fn the_policy_allows_what_cloudformation_needs_for_the_template_and_nothing_else() {
    let policy = policy();
    let granted: BTreeSet<&str> = statements(&policy).iter().flat_map(actions).collect();
    let needed = translate("permissions", &["CanaryDeployment=true"]);
    let needed = needed.as_object().expect("types");
    for (kind, needed) in needed {
        for action in needed.as_array().expect("actions").iter().map(text) {
            let is_granted = granted.iter().any(|granted| covers(granted, action));
            let is_unused = UNUSED.iter().any(|unused| covers(unused, action));
            assert!(is_granted || is_unused, "{kind} needs {action}");
        }
    }
    let needed: BTreeSet<&str> =
        needed.values().flat_map(|actions| actions.as_array().expect("actions")).map(text).collect();
    for granted in granted {
        let is_needed = needed.iter().any(|needed| covers(granted, needed));
        assert!(is_needed || BEYOND.iter().any(|(beyond, _)| covers(beyond, granted)), "nothing needs {granted}");
    }
}

/// Whoever deploys this service cannot touch what belongs to others.
#[test]
fn the_policy_is_limited_to_stacks_of_this_service() {
    let policy = policy();
    let config = read("samconfig.toml");
    let stacks: Vec<&str> = config.lines().filter_map(|line| line.strip_prefix("stack_name = ")).collect();
    assert!(stacks.len() >= 2 && stacks.iter().all(|stack| stack.starts_with("\"event-ingest-")), "{stacks:?}");
    for statement in statements(&policy) {
        let resources = match &statement["Resource"] {
            Value::Array(resources) => resources.iter().map(text).collect(),
            resource => vec![text(resource)],
        };
        let sid = text(&statement["Sid"]);
        for resource in resources {
            let is_own = resource.contains("event-ingest-") || resource.contains("aws-sam-cli-managed-default");
            // These have no name that could be restricted.
            let is_shared = ["WithoutResource", "Translation", "TemplateSummary", "Api", "KmsKey", "KmsKeyOfTables"];
            let is_setting = resource == "arn:aws:codedeploy:*:*:deploymentconfig:*";
            assert!(is_own || is_setting || is_shared.contains(&sid), "{sid}: {resource}");
        }
    }
    // IAM counts no whitespace.
    let length = read("tools/deploy-policy.json").chars().filter(|character| !character.is_whitespace()).count();
    assert!(length <= 6144, "{length} characters are too long for a managed policy");
}
