package main

import (
	"context"
	"errors"
	"fmt"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	pb "interop/gen/conversations/v1"
)

// invalidPage breaks a rule of the contract, and compares the violation that protovalidate finds here with the server's.
// With it this program links the modules of protovalidate and of googleapis beside the generated code.
func (s *scenario) invalidPage(ctx context.Context) error {
	request := &pb.ListItemsRequest{ConversationId: s.conversation.GetId(), PageSize: -1}
	var here *protovalidate.ValidationError
	if err := protovalidate.Validate(request); !errors.As(err, &here) || len(here.Violations) != 1 {
		return fmt.Errorf("want one violation, got %v", err)
	}
	_, err := s.client.ListItems(ctx, request)
	there, ok := detail[*errdetails.BadRequest](err)
	if !ok || len(there.GetFieldViolations()) != 1 {
		return fmt.Errorf("want one violation, got %v", err)
	}
	local, remote := here.Violations[0].Proto, there.GetFieldViolations()[0]
	if field := protovalidate.FieldPathString(local.GetField()); field != remote.GetField() || local.GetRuleId() != remote.GetReason() {
		return fmt.Errorf("the server says %v, protovalidate %v", remote, local)
	}
	return nil
}
