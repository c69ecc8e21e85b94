//! The Lambda bootstrap: configuration → clients → run.

use event_ingest::auth::Authenticator;
use event_ingest::aws::{api_keys::ApiKeysTable, prewarm, queue::SqsQueue, sdk_config, state_table::StateTable};
use event_ingest::clock::SystemClock;
use event_ingest::config::Config;
use event_ingest::gateway::GatewayEvent;
use event_ingest::http::App;
use event_ingest::ingest::Pipeline;
use event_ingest::rate_limit::RateLimiter;
use event_ingest::telemetry::{self, Telemetry};
use futures_util::FutureExt;
use lambda_runtime::{LambdaEvent, Runtime, service_fn};
use std::cell::RefCell;
use std::convert::Infallible;
use std::process::ExitCode;
use tower::util::ThenLayer;

// One request runs at a time in a sandbox, so one thread is enough and starts fastest.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return stop(&error),
    };
    telemetry::init(&config.log_filter);
    telemetry::report_panics();
    let function_name = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
    let telemetry = Telemetry::new(function_name, Box::new(std::io::stdout()));
    let sdk = sdk_config().await;
    let state_table = StateTable::new(&sdk, config.state_table);
    let queue = SqsQueue::new(&sdk, config.queue_url);
    prewarm(&sdk, &state_table, &queue).await;
    let app = App {
        auth: Authenticator::new(ApiKeysTable::new(&sdk, config.api_keys_table), config.rate_limit),
        limiter: RateLimiter::new(state_table.clone()),
        pipeline: Pipeline {
            store: state_table,
            queue,
            clock: SystemClock,
            dedup_window: config.dedup_window,
            most_events: config.max_events_per_message,
        },
        telemetry,
        answered: RefCell::default(),
    };
    let app = &app;
    let handler = service_fn(|event: LambdaEvent<GatewayEvent>| Box::pin(app.handle(event).map(Ok::<_, Infallible>)));
    // Around the posting of the answer: the client has it, and Lambda neither freezes the sandbox
    // nor sends it another request until it asks for one.
    let finish = ThenLayer::new(async |posted| {
        app.finish().await;
        posted
    });
    match Box::pin(Runtime::new(handler).layer(finish).run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => stop(error.as_ref()),
    }
}

/// Says why the function cannot run; Lambda then reports that it exited.
fn stop(error: &dyn std::error::Error) -> ExitCode {
    telemetry::print_failure(error);
    ExitCode::FAILURE
}
