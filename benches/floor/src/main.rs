//! The floor: the least that a function with this contract can do. It puts a record, sends the body,
//! and updates the record, with the same SDK, and checks nothing.

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use futures_util::future::try_join_all;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde::Deserialize;
use serde_json::{Value, json};

/// The most bytes in a call (AWS quota).
const MAX_BYTES: usize = 1_048_576;

#[derive(Deserialize)]
struct GatewayEvent {
    body: String,
}

struct Clients {
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    table: String,
    queue: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let clients = Clients {
        dynamodb: aws_sdk_dynamodb::Client::new(&sdk),
        sqs: aws_sdk_sqs::Client::new(&sdk),
        table: std::env::var("STATE_TABLE")?,
        queue: std::env::var("EVENTS_QUEUE_URL")?,
    };
    let clients = &clients;
    lambda_runtime::run(service_fn(|event: LambdaEvent<GatewayEvent>| handle(clients, event))).await
}

async fn handle(clients: &Clients, event: LambdaEvent<GatewayEvent>) -> Result<Value, Error> {
    let key = AttributeValue::S(event.context.request_id);
    let state = |state: &str| AttributeValue::S(state.to_owned());
    let put = clients.dynamodb.put_item().table_name(&clients.table).item("pk", key.clone());
    put.item("state", state("in_progress")).condition_expression("attribute_not_exists(pk)").send().await?;

    let sends = pieces(event.payload.body).into_iter().map(async |body| {
        let entry = SendMessageBatchRequestEntry::builder().id("0").message_body(body).build()?;
        clients.sqs.send_message_batch().queue_url(&clients.queue).entries(entry).send().await?;
        Ok::<_, Error>(())
    });
    try_join_all(sends).await?;

    let update = clients.dynamodb.update_item().table_name(&clients.table).key("pk", key);
    let update = update.update_expression("SET #state = :accepted").expression_attribute_names("#state", "state");
    update.expression_attribute_values(":accepted", state("accepted")).send().await?;
    Ok(json!({ "statusCode": 202, "body": r#"{"data":{"accepted":true}}"# }))
}

/// Divides the body into pieces that each fit into one call.
fn pieces(body: String) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = body;
    while rest.len() > MAX_BYTES {
        let mut cut = MAX_BYTES;
        while !rest.is_char_boundary(cut) {
            cut -= 1;
        }
        let tail = rest.split_off(cut);
        pieces.push(std::mem::replace(&mut rest, tail));
    }
    pieces.push(rest);
    pieces
}
