//! Writes the SDK's user agent once for each client instead of once for each call.
//!
//! It names the versions of the SDK and the settings of the client, and so it is the same in every call.

use aws_runtime::user_agent::UserAgentInterceptor;
use aws_sdk_dynamodb::config::interceptors::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextMut, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents, SharedInterceptor};
use aws_sdk_dynamodb::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::disable_interceptor;
use std::sync::OnceLock;

const HEADERS: [&str; 2] = ["user-agent", "x-amz-user-agent"];

/// For one client.
pub(super) fn kept() -> SharedInterceptor {
    SharedInterceptor::permanent(KeptUserAgent::default())
}

/// The values of [`HEADERS`] in the client's first call.
#[derive(Debug, Default)]
struct KeptUserAgent(OnceLock<[String; HEADERS.len()]>);

impl Intercept for KeptUserAgent {
    fn name(&self) -> &'static str {
        "KeptUserAgent"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.get().is_some() {
            call.interceptor_state().store_put(disable_interceptor::<UserAgentInterceptor>("the user agent is known"));
        }
        Ok(())
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        for (name, value) in HEADERS.into_iter().zip(self.0.get().into_iter().flatten()) {
            context.request_mut().headers_mut().insert(name, value.clone());
        }
        Ok(())
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request().headers();
        if let [Some(user_agent), Some(aws)] = HEADERS.map(|name| headers.get(name)) {
            self.0.get_or_init(|| [user_agent.to_owned(), aws.to_owned()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::dynamodb;
    use aws_config::{BehaviorVersion, Region, SdkConfig};
    use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider};
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use std::sync::{Arc, Mutex};

    /// Keeps the values of both headers of each request, and responds to none.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<[Vec<String>; HEADERS.len()]>>>);

    impl HttpConnector for Recorder {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let values = HEADERS.map(|name| request.headers().get_all(name).map(str::to_owned).collect());
            self.0.lock().unwrap().push(values);
            HttpConnectorFuture::ready(Err(ConnectorError::io("no connection".into())))
        }
    }

    #[tokio::test]
    async fn every_try_of_every_call_has_the_user_agent_of_the_first() {
        let recorder = Recorder::default();
        let connector = SharedHttpConnector::new(recorder.clone());
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "tests")))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .build();
        let client = dynamodb(&sdk);
        for _ in 0..2 {
            client.get_item().table_name("table").send().await.unwrap_err();
        }
        let requests = recorder.0.lock().unwrap();
        assert_eq!(requests.len(), 6, "each call is tried three times");
        let [user_agent, aws] = &requests[0];
        assert!(user_agent[0].starts_with("aws-sdk-rust/") && aws[0].contains("api/dynamodb/"), "{requests:?}");
        assert!(requests.iter().all(|request| *request == requests[0]), "{requests:#?}");
    }
}
