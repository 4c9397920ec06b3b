import { readFileSync } from "node:fs";

import {
  type CallOptions,
  type ChannelOptions,
  type Client,
  type ClientOptions,
  type ClientUnaryCall,
  credentials,
  InterceptingCall,
  type Interceptor,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";

import { ConversationsServiceClient } from "../gen/conversations/v1/conversations_service.js";
import { ErasureServiceClient } from "../gen/conversations/v1/erasure_service.js";
import { TransferServiceClient } from "../gen/conversations/v1/transfer_service.js";

const maxMessageBytes = 32 * 1024 * 1024; // limit of the server; Node receives at most 4 MiB by default

/**
 * Returns a client with a service config.
 *
 * grpc-js supports the config with two exceptions: it ignores `healthCheckConfig`, and it reads `waitForReady` without
 * acting on it. The interceptor implements `waitForReady`. The health check is not needed for restarts, because clients
 * retry what a stopping server refuses. On Unix sockets grpc-js sends the authority "localhost" by default.
 */
export function connect(
  target: string,
  serviceConfigFile: string,
  options: ChannelOptions = {},
): ConversationsServiceClient {
  return new ConversationsServiceClient(target, credentials.createInsecure(), {
    ...optionsFor(serviceConfigFile),
    ...options,
  });
}

/** The same for the other services. Clients of one target and the same options share their connection. */
export function connectForTransfers(target: string, serviceConfigFile: string): TransferServiceClient {
  return new TransferServiceClient(target, credentials.createInsecure(), optionsFor(serviceConfigFile));
}

export function connectForErasures(target: string, serviceConfigFile: string): ErasureServiceClient {
  return new ErasureServiceClient(target, credentials.createInsecure(), optionsFor(serviceConfigFile));
}

function optionsFor(serviceConfigFile: string): ChannelOptions & Partial<ClientOptions> {
  const serviceConfig = readFileSync(serviceConfigFile, "utf8");
  return {
    "grpc.service_config": serviceConfig,
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.max_send_message_length": maxMessageBytes,
    "grpc.per_rpc_retry_buffer_size": maxMessageBytes, // larger requests are not retried; 1 MiB by default
    interceptors: [waitingForReady(JSON.parse(serviceConfig))],
  };
}

/**
 * Returns a client for at most 100 watches, with a connection of its own.
 *
 * They are resumed by token instead of retried, and look for a lost server often.
 */
export function connectForWatches(target: string, serviceConfigFile: string): ConversationsServiceClient {
  return connect(target, serviceConfigFile, {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
  });
}

interface ServiceConfig {
  methodConfig: { name: { service: string; method?: string }[]; waitForReady?: boolean }[];
}

/** Has those calls wait for a connection that the config says should, instead of failing without one. */
function waitingForReady({ methodConfig }: ServiceConfig): Interceptor {
  const waits = (path: string) => {
    const [, service, method] = path.split("/");
    const of = (name?: string) =>
      methodConfig.find((config) => config.name.some((each) => each.service === service && each.method === name));
    return (of(method) ?? of(undefined))?.waitForReady ?? false;
  };
  return (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.setOptions({ ...metadata.getOptions(), waitForReady: waits(options.method_definition.path) });
        next(metadata, listener);
      },
    });
}

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** A unary call as a promise: `call(client, client.getItem, request)`. */
export function call<Request, Response>(
  client: Client,
  method: Unary<Request, Response>,
  request: Request,
  options: Partial<CallOptions> = {},
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method.call(client, request, new Metadata(), options, (error, response) => {
      error ? reject(error) : resolve(response);
    });
  });
}
