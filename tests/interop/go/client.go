package main

import (
	"fmt"
	"os"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig is ignored
	"google.golang.org/grpc/status"
)

const (
	domain          = "conversations.v1"
	maxMessageBytes = 32 << 20 // the server's; Go receives 4 MiB unless told otherwise
)

// dial makes a connection that behaves as the service config says. The config is a default: one that a resolver finds
// goes before it. On Unix sockets Go's authority is "localhost" already.
func dial(target, serviceConfig string) (*grpc.ClientConn, error) {
	config, err := os.ReadFile(serviceConfig)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxRetryRPCBufferSize(maxMessageBytes), // a larger request is not retried; 256 KiB unless told otherwise
		),
	)
}

// expect returns nil if err has this code and this reason. Messages are for people and may change; reasons do not.
func expect(err error, code codes.Code, reason string) error {
	info, ok := detail[*errdetails.ErrorInfo](err)
	if status.Code(err) != code || !ok || info.GetReason() != reason || info.GetDomain() != domain {
		return fmt.Errorf("want %v with %s of %s, got %v with %v", code, reason, domain, err, info)
	}
	return nil
}

// detail finds the one detail of type T that an error carries; there is at most one of each.
func detail[T any](err error) (T, bool) {
	for _, one := range status.Convert(err).Details() {
		if found, ok := one.(T); ok {
			return found, true
		}
	}
	var none T
	return none, false
}
