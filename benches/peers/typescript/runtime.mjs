/**
 * Runs a handler under the Lambda Runtime API, as AWS's runtime client does.
 *
 * That client (npm aws-lambda-ric) is not used because it compiles curl during installation, which needs
 * cmake, autotools and Node 22. This loop uses one keep-alive connection and copies nothing, so it costs the
 * peer less than AWS's client would.
 */
import { Agent, request } from 'node:http';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const { handler } = await import(pathToFileURL(resolve(process.argv[2])).href);
const [hostname, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
const agent = new Agent({ keepAlive: true, maxSockets: 1, noDelay: true });

function call(method, path, body) {
  return new Promise((resolvePromise, fail) => {
    const headers = body === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
    const sent = request({ hostname, port, agent, method, headers, path: `/2018-06-01/runtime/${path}` }, (received) => {
      const chunks = [];
      received.on('data', (chunk) => chunks.push(chunk));
      received.on('end', () => resolvePromise({ headers: received.headers, body: Buffer.concat(chunks) }));
      received.on('error', fail);
    });
    sent.on('error', fail);
    sent.end(body);
  });
}

for (;;) {
  const { headers, body } = await call('GET', 'invocation/next');
  const awsRequestId = headers['lambda-runtime-aws-request-id'];
  const deadline = Number(headers['lambda-runtime-deadline-ms']);
  const context = {
    awsRequestId,
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    getRemainingTimeInMillis: () => deadline - Date.now(),
  };
  try {
    const result = await handler(JSON.parse(body.toString('utf8')), context);
    await call('POST', `invocation/${awsRequestId}/response`, JSON.stringify(result));
  } catch (error) {
    const report = { errorType: error.name, errorMessage: error.message, trace: error.stack?.split('\n') };
    await call('POST', `invocation/${awsRequestId}/error`, JSON.stringify(report));
  }
}
