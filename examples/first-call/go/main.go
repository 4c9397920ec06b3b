// Command firstcall creates a conversation over TLS with a token, and prints its owner.
package main

//go:generate buf generate

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	pb "firstcall/gen/conversations/v1"
)

// tokenFile is read at each call, so that a new token is used at once.
type tokenFile string

func (file tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, err
}

func (tokenFile) RequireTransportSecurity() bool { return true }

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	tls, err := credentials.NewClientTLSFromFile(os.Getenv("CONVERSATIONS_TARGET_CA"), "")
	if err != nil {
		return err
	}
	token := tokenFile(os.Getenv("CONVERSATIONS_TARGET_TOKEN_FILE"))
	connection, err := grpc.NewClient(os.Getenv("CONVERSATIONS_TARGET"),
		grpc.WithTransportCredentials(tls), grpc.WithPerRPCCredentials(token))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request := &pb.CreateConversationRequest{Conversation: &pb.Conversation{Metadata: map[string]string{"topic": "go"}}}
	if err := protovalidate.Validate(request); err != nil { // the rules of the contract, before anything is sent
		return err
	}
	made, err := pb.NewConversationsServiceClient(connection).CreateConversation(ctx, request)
	if err != nil {
		return err
	}
	fmt.Println(made.GetOwner())
	return nil
}
