package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file follows a stream for good, and does at each of its ends what the table of docs/watch.md says. It depends on
// no generated code: WatchItems and WatchConversations are followed by the same loop.

const (
	defaultSilence = 90 * time.Second // three times the pause between two messages of an idle stream
	firstPause     = 100 * time.Millisecond
	longestPause   = 2 * time.Second
)

var errSilence = errors.New("nothing has arrived for too long")

// message is a response of WatchItems or of WatchConversations.
type message interface{ GetResumeToken() string }

// stream is what the generated methods return.
type stream[M message] interface{ Recv() (M, error) }

// event is a message or, if reset is set, the news that the stream begins anew: forget what was told so far.
type event[M message] struct {
	message M
	reset   bool
}

type followOptions struct {
	resumeToken string                      // of the last message that was dealt with, if one was stored
	renew       func(context.Context) error // gets new credentials after the last ones were refused; may be nil
	silence     time.Duration               // after so long without a message the connection counts as broken; 90 s
}

// follow yields what happens until ctx ends, and at last the error that it cannot go on after. A message counts as
// dealt with when the next one is asked for: store what has to survive a crash before that, with the resume token.
//
// open opens the stream behind a token, or at its beginning without one.
func follow[M message](
	ctx context.Context, open func(ctx context.Context, token string) (stream[M], error), options followOptions,
) iter.Seq2[event[M], error] {
	return func(yield func(event[M], error) bool) {
		token, recovery := options.resumeToken, recovery{renew: options.renew, pause: firstPause}
		for {
			var ended error
			for message, err := range receive(ctx, open, token, options.silence) {
				if err != nil {
					ended = err
					break
				}
				recovery.noteMessage()
				if !yield(event[M]{message: message}, nil) {
					return
				}
				token = message.GetResumeToken()
			}
			if token != "" && isStale(ended) {
				token = ""
				if !yield(event[M]{reset: true}, nil) {
					return
				}
			} else if err := recovery.after(ctx, ended); err != nil {
				yield(event[M]{}, err)
				return
			}
		}
	}
}

// receive yields the messages of one stream until it ends with OK or is silent for too long, or the error that it ends
// with otherwise.
func receive[M message](
	ctx context.Context, open func(context.Context, string) (stream[M], error), token string, silence time.Duration,
) iter.Seq2[M, error] {
	return func(yield func(M, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		if silence == 0 {
			silence = defaultSilence
		}
		timer := time.AfterFunc(silence, func() { cancel(errSilence) })
		defer timer.Stop()
		stream, err := open(ctx, token)
		for err == nil {
			var next M
			if next, err = stream.Recv(); err == nil {
				timer.Stop() // the caller may take its time
				if !yield(next, nil) {
					return
				}
				timer.Reset(silence)
			}
		}
		if err != io.EOF && context.Cause(ctx) != errSilence {
			var none M
			yield(none, err)
		}
	}
}

// recovery decides when a stream that has ended may be opened again.
type recovery struct {
	renew      func(context.Context) error
	hasRenewed bool
	hasMessage bool
	pause      time.Duration
}

// noteMessage is called when the server answers: whatever failed before has passed.
func (r *recovery) noteMessage() {
	r.hasRenewed, r.hasMessage, r.pause = false, true, firstPause
}

// after returns nil when the stream may be opened again, and the error if it may not.
func (r *recovery) after(ctx context.Context, ended error) error {
	switch code := status.Code(ended); {
	case ctx.Err() != nil:
		return ctx.Err()
	case ended == nil && r.hasMessage:
		r.hasMessage = false
		return nil
	case ended == nil: // a stream that brings nothing must not be opened over and over
		return r.wait(ctx, 0)
	case code == codes.Unavailable, code == codes.ResourceExhausted, code == codes.Canceled:
		info, _ := detail[*errdetails.RetryInfo](ended)
		return r.wait(ctx, info.GetRetryDelay().AsDuration())
	case code == codes.Unauthenticated && !r.hasRenewed:
		r.hasRenewed = true
		if r.renew != nil {
			return r.renew(ctx)
		}
		return nil
	}
	return ended
}

func (r *recovery) wait(ctx context.Context, least time.Duration) error {
	jitter := 0.8 + 0.4*rand.Float64()
	pause := least + time.Duration(jitter*float64(r.pause))
	r.pause = min(2*r.pause, longestPause)
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isStale tells whether a stream ended because its token cannot be used any more.
func isStale(err error) bool {
	info, _ := detail[*errdetails.ErrorInfo](err)
	code := status.Code(err)
	return code == codes.OutOfRange && info.GetReason() == "RESUME_TOKEN_EXPIRED" ||
		code == codes.InvalidArgument && info.GetReason() == "RESUME_TOKEN_INVALID"
}

// detail returns the detail of type T of an error; an error has at most one of each type.
func detail[T any](err error) (T, bool) {
	for _, one := range status.Convert(err).Details() {
		if found, ok := one.(T); ok {
			return found, true
		}
	}
	var none T
	return none, false
}
