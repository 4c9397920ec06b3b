package main

import (
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig is ignored
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	domain          = "conversations.v1"
	maxMessageBytes = 32 << 20 // limit of the server; Go receives at most 4 MiB by default
)

// dial returns a connection with the given service config. The config is a default: one that a resolver provides takes
// precedence. On Unix sockets Go sends the authority "localhost" by default.
func dial(target, serviceConfig string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	config, err := os.ReadFile(serviceConfig)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxRetryRPCBufferSize(maxMessageBytes), // larger requests are not retried; 256 KiB by default
		),
	)...)
}

// dialForWatches returns a connection for at most 100 watches. They are resumed by token instead of retried, and look
// for a lost server often.
func dialForWatches(target, serviceConfig string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = longestPause
	return dial(target, serviceConfig, append(options,
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
	)...)
}

// expect returns nil if err has this code and this reason. Messages may change; reasons do not.
func expect(err error, code codes.Code, reason string) error {
	info, ok := detail[*errdetails.ErrorInfo](err)
	if status.Code(err) != code || !ok || info.GetReason() != reason || info.GetDomain() != domain {
		return fmt.Errorf("want %v with %s of %s, got %v with %v", code, reason, domain, err, info)
	}
	return nil
}
