import { setTimeout as sleep } from "node:timers/promises";

import { type ClientReadableStream, type ServiceError, status } from "@grpc/grpc-js";

import { WatchItemsRequest, type WatchItemsResponse } from "../gen/conversations/v1/conversations_service.js";
import { detailsOf } from "./errors.js";

const firstPauseMs = 100;
const longestPauseMs = 2000;
const transient = new Set([status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.CANCELLED]);

/** Forget what was told so far: the watch begins anew, as its request says. */
export const reset = Symbol("reset");

export interface WatchOptions {
  /** Of the last message that was dealt with, if one was stored. */
  resumeToken?: string;
  /** Gets new credentials for the next stream, after the server has refused the last ones. */
  renew?: () => Promise<void>;
  /** After so long without a message the connection counts as broken. */
  silenceMs?: number;
  /** Ends the watch, which then throws its reason. */
  signal?: AbortSignal;
}

/**
 * Follows a conversation until it has been deleted: opens a stream whenever one ends, behind the last message that was
 * dealt with. What it does at each end of a stream is the table of docs/watch.md.
 *
 * A message counts as dealt with when the next one is asked for: store what has to survive a crash before that,
 * together with the message's `resumeToken`. An error that is thrown is one that the watch cannot go on after.
 *
 * @param open `(request) => client.watchItems(request)`, with a client that has a connection of its own.
 * @param request Which conversation, and where to begin without a token.
 */
export async function* watchItems(
  open: (request: WatchItemsRequest) => ClientReadableStream<WatchItemsResponse>,
  request: WatchItemsRequest,
  { resumeToken = "", renew, silenceMs = 90_000, signal }: WatchOptions = {},
): AsyncGenerator<WatchItemsResponse | typeof reset, void, void> {
  const recovery = new Recovery(renew, signal);
  for (;;) {
    signal?.throwIfAborted();
    try {
      for await (const response of messages(open(startingBehind(resumeToken, request)), silenceMs, signal)) {
        recovery.noteMessage();
        yield response;
        resumeToken = response.resumeToken;
        if (response.changes.some(({ change }) => change?.$case === "conversationDeleted")) {
          return;
        }
      }
      await recovery.afterEnd();
    } catch (error) {
      signal?.throwIfAborted();
      if (resumeToken && isStale(error as ServiceError)) {
        resumeToken = "";
        yield reset;
      } else {
        await recovery.afterError(error as ServiceError);
      }
    }
  }
}

function startingBehind(token: string, request: WatchItemsRequest): WatchItemsRequest {
  return token ? { ...request, start: { $case: "resumeToken", value: token } } : request;
}

/** The messages of one stream, until it ends with OK or is silent for too long. */
async function* messages(
  call: ClientReadableStream<WatchItemsResponse>,
  silenceMs: number,
  signal?: AbortSignal,
): AsyncGenerator<WatchItemsResponse, void, void> {
  const cancel = () => call.cancel();
  let isSilent = false;
  const breakOff = () => {
    isSilent = true;
    cancel();
  };
  call.on("error", () => {}); // an error that comes when nobody reads any more would end the process
  signal?.addEventListener("abort", cancel);
  let timer = setTimeout(breakOff, silenceMs);
  try {
    for await (const response of call) {
      clearTimeout(timer); // the caller may take its time
      yield response;
      timer = setTimeout(breakOff, silenceMs);
    }
  } catch (error) {
    if (!isSilent) {
      throw error;
    }
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", cancel);
    cancel();
  }
}

/** Returns when a stream that has ended may be opened again. */
class Recovery {
  private hasRenewed = false;
  private hasMessage = false;
  private pauseMs = firstPauseMs;

  constructor(
    private readonly renew: WatchOptions["renew"],
    private readonly signal: WatchOptions["signal"],
  ) {}

  /** The server answers: whatever failed before has passed. */
  noteMessage(): void {
    this.hasRenewed = false;
    this.hasMessage = true;
    this.pauseMs = firstPauseMs;
  }

  /** At once, unless streams end before they have brought anything. */
  async afterEnd(): Promise<void> {
    if (!this.hasMessage) {
      await this.wait();
    }
    this.hasMessage = false;
  }

  /** Throws the error if it is final, and if new credentials were refused too. */
  async afterError(error: ServiceError): Promise<void> {
    if (transient.has(error.code)) {
      const { seconds = 0n, nanos = 0 } = detailsOf(error).retryInfo?.retryDelay ?? {};
      await this.wait(Number(seconds) * 1000 + nanos / 1e6);
    } else if (error.code === status.UNAUTHENTICATED && !this.hasRenewed) {
      this.hasRenewed = true;
      await this.renew?.();
    } else {
      throw error;
    }
  }

  private async wait(leastMs = 0): Promise<void> {
    const jitter = 0.8 + 0.4 * Math.random();
    await sleep(leastMs + jitter * this.pauseMs, undefined, { signal: this.signal });
    this.pauseMs = Math.min(2 * this.pauseMs, longestPauseMs);
  }
}

/** Whether a stream ended because its token cannot be used any more. */
function isStale(error: ServiceError): boolean {
  const reasons: { [code: number]: string } = {
    [status.OUT_OF_RANGE]: "RESUME_TOKEN_EXPIRED",
    [status.INVALID_ARGUMENT]: "RESUME_TOKEN_INVALID",
  };
  const reason = reasons[error.code];
  return reason !== undefined && detailsOf(error).info?.reason === reason;
}
