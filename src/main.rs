//! The Lambda bootstrap: configuration → clients → run.

use event_ingest::auth::Authenticator;
use event_ingest::aws::{api_keys::ApiKeysTable, calls, prewarm, queue::SqsQueue, sdk_config, state_table::StateTable};
use event_ingest::clock::SystemClock;
use event_ingest::config::Config;
use event_ingest::gateway::GatewayEvent;
use event_ingest::http::App;
use event_ingest::ingest::Pipeline;
use event_ingest::rate_limit::RateLimiter;
use event_ingest::telemetry::{self, AwsCalls, Telemetry};
use lambda_runtime::{LambdaEvent, Runtime, service_fn};
use std::cell::Cell;
use std::convert::Infallible;
use std::process::ExitCode;
use tower::util::ThenLayer;

// A sandbox handles one request at a time, so one thread is enough and starts fastest.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return stop(&error),
    };
    telemetry::init(&config.log_filter);
    telemetry::report_panics();
    let telemetry = Telemetry::new(config.function_name, config.version, Box::new(std::io::stdout()), aws_calls);
    let sdk = sdk_config(config.uses_tls).await;
    let state_table = StateTable::new(&sdk, config.state_table);
    let queue = SqsQueue::new(&sdk, config.queue_url);
    if config.uses_tls {
        prewarm(&state_table, &queue).await;
    }
    let app = App {
        auth: Authenticator::new(ApiKeysTable::new(&sdk, config.api_keys_table), config.rate_limit),
        limiter: RateLimiter::new(state_table.clone()),
        pipeline: Pipeline {
            store: state_table,
            queue,
            clock: SystemClock,
            dedup_window: config.dedup_window,
            packing: config.packing,
        },
        telemetry,
    };
    // The handler returns only the response to the runtime, so the rest waits here until the runtime
    // has sent it.
    let unfinished = Cell::new(None);
    let (app, unfinished) = (&app, &unfinished);
    let handler = service_fn(|event: LambdaEvent<GatewayEvent>| {
        Box::pin(async move {
            let (response, rest) = app.handle(event).await;
            unfinished.set(Some(rest));
            Ok::<_, Infallible>(response)
        })
    });
    // Runs after the response is sent. Lambda does not freeze the sandbox, or give it another request,
    // until the runtime asks for the next one.
    let finish = ThenLayer::new(async |sent| {
        if let Some(rest) = unfinished.take() {
            app.finish(rest).await;
        }
        sent
    });
    match Box::pin(Runtime::new(handler).layer(finish).run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => stop(error.as_ref()),
    }
}

fn aws_calls() -> AwsCalls {
    let (calls, retries) = calls::take();
    AwsCalls { calls, retries }
}

/// Logs why the function cannot run. Lambda then reports that it exited.
fn stop(error: &dyn std::error::Error) -> ExitCode {
    telemetry::print_failure(error);
    ExitCode::FAILURE
}
