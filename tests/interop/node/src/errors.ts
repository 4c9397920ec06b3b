import assert from "node:assert/strict";

import { type ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RetryInfo } from "../gen/google/rpc/error_details.js";
import { Status } from "../gen/google/rpc/status.js";

const domain = "conversations.v1";

/** What a failed call carries beside its code and its message: each kind of detail at most once. */
export interface Details {
  info?: ErrorInfo;
  badRequest?: BadRequest;
  retryInfo?: RetryInfo;
}

export function detailsOf(error: ServiceError): Details {
  const [encoded] = error.metadata.get("grpc-status-details-bin");
  const details: Details = {};
  for (const { typeUrl, value } of encoded instanceof Buffer ? Status.decode(encoded).details : []) {
    switch (typeUrl) {
      case "type.googleapis.com/google.rpc.ErrorInfo":
        details.info = ErrorInfo.decode(value);
        break;
      case "type.googleapis.com/google.rpc.BadRequest":
        details.badRequest = BadRequest.decode(value);
        break;
      case "type.googleapis.com/google.rpc.RetryInfo":
        details.retryInfo = RetryInfo.decode(value);
        break;
    }
  }
  return details;
}

/** The error that a call fails with; a call that succeeds is a failure. */
export async function failure(call: Promise<unknown>): Promise<ServiceError> {
  try {
    await call;
  } catch (error) {
    return error as ServiceError;
  }
  assert.fail("the call should have failed");
}

/** Expects this code and this reason. Messages are for people and may change; reasons do not. */
export async function expectFailure(call: Promise<unknown>, code: status, reason: string): Promise<Details> {
  const error = await failure(call);
  const details = detailsOf(error);
  const got = [status[error.code], details.info?.reason, details.info?.domain];
  assert.deepEqual(got, [status[code], reason, domain], error.message);
  return details;
}
